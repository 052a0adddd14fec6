//! Bad samples and bad sources: each kind has its place and reason, and the job goes on.

use mks2_dataset::error::{Error, Trouble};
use mks2_dataset::picture::Limits;
use mks2_dataset::store;
use mks2_proto::failure::{ExitCode, Failure};

use crate::support::{Bench, entry, good_tar, header, png, sample, tar};

/// A PNG whose header announces 60,000 x 60,000 pixels.
fn huge_png() -> Vec<u8> {
    let mut bytes = png(0);
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let crc = !bytes[12..29].iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
        })
    });
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// A sample with this picture, caption and metadata.
fn with(key: &str, picture: &[u8], caption: Option<&[u8]>, json: Option<&[u8]>) -> Vec<u8> {
    let mut parts = entry(format!("{key}.png").as_bytes(), picture);
    if let Some(caption) = caption {
        parts.extend(entry(format!("{key}.txt").as_bytes(), caption));
    }
    if let Some(json) = json {
        parts.extend(entry(format!("{key}.json").as_bytes(), json));
    }
    parts
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one table of all kinds")]
async fn each_kind_of_bad_sample_is_listed_with_place_and_reason() {
    let good = png(1);
    let mut broken_png = png(2);
    let middle = broken_png.len() / 2;
    broken_png[middle] ^= 0xFF;
    let text = Some(&b"fine"[..]);
    // Key, reason, bytes of the sample.
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "cut",
            "picture_truncated",
            with("cut", &good[..good.len() - 30], text, None),
        ),
        (
            "broken",
            "picture_broken",
            with("broken", &broken_png, text, None),
        ),
        (
            "huge",
            "picture_too_many_pixels",
            with("huge", &huge_png(), text, None),
        ),
        (
            "gif",
            "picture_unknown_format",
            with("gif", b"GIF89a....", text, None),
        ),
        (
            "heavy",
            "picture_too_many_bytes",
            with("heavy", &vec![0; 5000], text, None),
        ),
        (
            "mute",
            "caption_missing",
            with("mute", &good, None, Some(b"{}")),
        ),
        (
            "blank",
            "caption_missing",
            with("blank", &good, Some(b" \n"), None),
        ),
        (
            "asks",
            "answer_missing",
            with("asks", &good, None, Some(br#"{"question": "?"}"#)),
        ),
        (
            "latin",
            "not_utf8",
            with("latin", &good, Some(b"caf\xe9"), None),
        ),
        (
            "json8",
            "not_utf8",
            with("json8", &good, text, Some(b"{\"a\": \"\xff\"}")),
        ),
        (
            "json",
            "json_broken",
            with("json", &good, text, Some(b"{\"a\": ")),
        ),
        (
            "list",
            "json_broken",
            with("list", &good, text, Some(b"[]")),
        ),
        (
            "typed",
            "field_not_text",
            with("typed", &good, None, Some(br#"{"caption": 1}"#)),
        ),
        (
            "blind",
            "picture_missing",
            entry(b"blind.txt", b"no picture"),
        ),
        ("twice", "duplicate_entry", {
            [entry(b"twice.png", &good), with("twice", &good, text, None)].concat()
        }),
        ("s-0000", "duplicate_key", sample("s-0000", 9)),
    ];
    let mut parts = vec![sample("s-0000", 0)];
    let mut offsets = Vec::new();
    for (_, _, bytes) in &cases {
        offsets.push(parts.concat().len());
        parts.push(bytes.clone());
    }
    parts.push(sample("s-0001", 1));
    let bench = Bench::new();
    let source = bench.file("x.tar", tar(&parts));
    let mut options = bench.options(&[&source], "out");
    options.limits = Limits {
        max_bytes: 4096,
        ..Limits::default()
    };
    let summary = mks2_dataset::import::import(&options, &|_| {})
        .await
        .unwrap();
    let quarantine = bench.quarantine("out");
    for ((case, line), offset) in cases.iter().zip(&quarantine).zip(offsets) {
        let (key, reason, bytes) = case;
        assert_eq!(
            (line["key"].as_str(), line["reason"].as_str()),
            (Some(*key), Some(*reason))
        );
        assert_eq!(line["source"], source.as_str());
        assert!(line["entry"].as_str().unwrap().starts_with(key), "{line}");
        let at = line["offset"].as_u64().unwrap() as usize;
        assert!((offset..offset + bytes.len()).contains(&at), "{line}");
        assert!(!line["detail"].as_str().unwrap().is_empty());
    }
    assert_eq!(quarantine.len(), cases.len());
    assert_eq!(summary.quarantined as usize, cases.len());
    assert_eq!(summary.reasons.values().sum::<u64>() as usize, cases.len());
    assert_eq!(summary.reasons["caption_missing"], 2);
    let keys: Vec<_> = bench
        .rows("out")
        .await
        .into_iter()
        .map(|row| row.key)
        .collect();
    assert_eq!(keys, ["s-0000", "s-0001"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_entries_do_not_spoil_their_neighbours() {
    let parts = [
        sample("a", 1),
        entry(b"../../etc/evil.png", &png(1)),
        entry(b"/abs.png", &png(1)),
        header(b"link.png", 0, b'2').to_vec(),
        entry(b"caf\xe9.png", &png(1)),
        sample("b", 2),
    ];
    let bench = Bench::new();
    let source = bench.file("x.tar", tar(&parts));
    let summary = bench.import(&[source], "out").await.unwrap();
    assert_eq!(summary.rows, 2);
    let reasons: Vec<_> = bench
        .quarantine("out")
        .iter()
        .map(|line| line["reason"].clone())
        .collect();
    assert_eq!(
        reasons,
        ["path_traversal", "path_traversal", "not_a_file", "not_utf8"]
    );
    let keys: Vec<_> = bench
        .rows("out")
        .await
        .into_iter()
        .map(|row| row.key)
        .collect();
    assert_eq!(keys, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_header_loses_one_sample_and_a_cut_archive_the_last() {
    let bench = Bench::new();
    let mut damaged = tar(&[sample("a", 1), sample("b", 2), sample("c", 3)]);
    let at = sample("a", 1).len();
    damaged[at + 3] ^= 0x55;
    let first = bench.file("damaged.tar", damaged);
    let whole = tar(&[sample("d", 4), sample("e", 5)]);
    let cut = sample("d", 4).len() + 600;
    let second = bench.file("cut.tar", &whole[..cut]);
    let rest = bench.file("rest.tar", good_tar(0, 2));
    let summary = bench.import(&[first, second, rest], "out").await.unwrap();
    let keys: Vec<_> = bench
        .rows("out")
        .await
        .into_iter()
        .map(|row| row.key)
        .collect();
    assert_eq!(keys, ["a", "c", "d", "s-0000", "s-0001"]);
    assert_eq!(summary.reasons["tar_header_damaged"], 1);
    assert_eq!(summary.reasons["tar_truncated"], 1);
    assert_eq!(
        summary.reasons["picture_missing"], 1,
        "{:?}",
        summary.reasons
    );
    let line = &bench.quarantine("out")[0];
    assert_eq!(line["offset"].as_u64(), Some(at as u64), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_rubbish_is_no_tar() {
    let bench = Bench::new();
    let rubbish: Vec<u8> = (0..100_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let source = bench.file("x.tar", rubbish);
    let error = bench.import(&[source], "out").await.unwrap_err();
    assert!(
        matches!(&error, Error::NothingImported { reason, .. } if reason.contains("tar_header"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_sources_and_sources_of_bad_samples_give_no_corpus() {
    let bench = Bench::new();
    let empty = bench.file("empty.tar", b"");
    let zeros = bench.file("zeros.tar", [0; 10240]);
    let lines = bench.file("empty.jsonl", b"\n\n");
    for source in [empty, zeros, lines] {
        let error = bench.import(&[source], "out").await.unwrap_err();
        let failure = Failure::from(error);
        assert_eq!(failure.exit, ExitCode::Data);
        assert!(failure.why.contains("no samples"), "{failure}");
    }
    let bad = bench.file("bad.tar", tar(&[entry(b"a.txt", b"no picture")]));
    let failure = Failure::from(bench.import(&[bad], "bad").await.unwrap_err());
    assert!(failure.why.contains("1 picture_missing"), "{failure}");
    assert_eq!(bench.quarantine("bad").len(), 1);
    assert!(!bench.path("bad/manifest.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_is_said_before_anything_is_written() {
    let bench = Bench::new();
    let good = bench.file("x.tar", good_tar(0, 2));
    let missing = bench.path("none.tar").to_str().unwrap().to_owned();
    let error = bench
        .import(&[good.clone(), missing], "out")
        .await
        .unwrap_err();
    assert!(matches!(&error, Error::MissingSource { name } if name.ends_with("none.tar")));
    let foreign = bench.file("x.csv", b"a,b");
    let error = bench
        .import(&[good.clone(), foreign], "out")
        .await
        .unwrap_err();
    assert!(matches!(&error, Error::Source { .. }));
    let error = bench.import(&["a{".to_owned()], "out").await.unwrap_err();
    assert!(error.to_string().contains("never closed"));
    let mut options = bench.options(&[good], "out");
    options.row_group_rows = 100_000;
    let error = mks2_dataset::import::import(&options, &|_| {})
        .await
        .unwrap_err();
    assert_eq!(Failure::from(error).exit, ExitCode::Usage);
    assert!(!bench.path("out").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_written_is_a_storage_failure() {
    let bench = Bench::new();
    let good = bench.file("x.tar", good_tar(0, 2));
    bench.file("plain", b"a file");
    let error = bench.import(&[good], "plain/corpus").await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Store {
                trouble: Trouble::NotAFolder,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(Failure::from(error).exit, ExitCode::Storage);
}

#[tokio::test]
async fn a_missing_corpus_and_an_empty_one_are_told_apart() {
    let bench = Bench::new();
    let url = bench.path("none").to_str().unwrap().to_owned();
    let error = mks2_dataset::reader::Corpus::open(&url).await.unwrap_err();
    assert!(matches!(error, Error::MissingCorpus { .. }));
    let manifest =
        r#"{"version":1,"rows":0,"row_group_rows":4,"row_groups_per_shard":2,"shards":[]}"#;
    let (store, root) = store::open("memory://bad/empty").unwrap();
    let path = store::under(&root, "manifest.json").unwrap();
    store::put(&*store, &path, manifest.into()).await.unwrap();
    let error = mks2_dataset::reader::Corpus::open("memory://bad/empty")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::EmptyCorpus { .. }));
}
