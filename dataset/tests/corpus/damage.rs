//! Finished corpora that are damaged later: verification names what is wrong, nothing panics.

use mks2_dataset::error::Error;
use mks2_dataset::reader::Corpus;
use mks2_dataset::verify::{Verification, verify};

use crate::support::{Bench, good_tar, png};

const SHARD: &str = "out/shards/part-00001.parquet";

async fn bench() -> Bench {
    let bench = Bench::new();
    let source = bench.file("x.tar", good_tar(0, 21));
    bench.import(&[source], "out").await.unwrap();
    bench
}

async fn check(bench: &Bench) -> Verification {
    verify(bench.path("out").to_str().unwrap(), &|_, _| {})
        .await
        .unwrap()
}

/// Where a row's picture lies in the bytes of a shard.
fn find(shard: &[u8], picture: &[u8]) -> usize {
    shard
        .windows(picture.len())
        .position(|window| window == picture)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_picture_names_file_row_and_key() {
    let bench = bench().await;
    let mut shard = std::fs::read(bench.path(SHARD)).unwrap();
    let at = find(&shard, &png(13));
    shard[at + 50] ^= 0x10;
    bench.file(SHARD, shard);
    let found = check(&bench).await;
    assert_eq!(found.problems_total, 2, "{:?}", found.problems);
    assert!(found.problems[0].what.contains("digest"));
    assert_eq!(found.problems[1].row, Some(13));
    assert_eq!(found.problems[1].key.as_deref(), Some("s-0013"));
    assert!(
        found.problems[1]
            .to_string()
            .starts_with("shards/part-00001.parquet, row 13 (s-0013)")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_cut_and_swapped_files_are_named() {
    let fresh = bench().await;
    let shard = std::fs::read(fresh.path(SHARD)).unwrap();
    std::fs::remove_file(fresh.path(SHARD)).unwrap();
    let found = check(&fresh).await;
    assert_eq!(found.problems_total, 1, "{:?}", found.problems);
    assert_eq!(found.problems[0].what, "it does not exist");
    fresh.file(SHARD, &shard[..shard.len() - 100]);
    let found = check(&fresh).await;
    assert!(found.problems_total >= 2, "{:?}", found.problems);
    assert!(
        found.problems[1].what.contains("rows 8 to 11"),
        "{:?}",
        found.problems
    );
    std::fs::copy(
        fresh.path("out/shards/part-00000.parquet"),
        fresh.path(SHARD),
    )
    .unwrap();
    let found = check(&fresh).await;
    assert!(found.problems_total >= 1);
    assert_eq!(found.problems[0].file, "shards/part-00001.parquet");
    fresh.file(SHARD, &shard);
    fresh.file("out/quarantine.jsonl", b"{}\n");
    let found = check(&fresh).await;
    assert_eq!(found.problems_total, 1);
    assert_eq!(found.problems[0].file, "quarantine.jsonl");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_damage_to_a_shard_panics_and_each_is_found() {
    let bench = bench().await;
    let whole = std::fs::read(bench.path(SHARD)).unwrap();
    // The footer and page headers are where decoders stumble: every 7th byte, and the last 600.
    let places = (0..whole.len()).filter(|at| at % 7 == 0 || at + 600 > whole.len());
    for at in places.step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xFF;
        bench.file(SHARD, &damaged);
        let corpus = Corpus::open(bench.path("out").to_str().unwrap())
            .await
            .unwrap();
        for group in 2..4 {
            let read = corpus.read_group(group).await;
            assert!(
                matches!(read, Ok(_) | Err(Error::Corrupt { .. })),
                "{at}: {read:?}"
            );
        }
    }
    bench.file(SHARD, &whole);
    assert_eq!(check(&bench).await.problems_total, 0);
}

#[tokio::test]
async fn rows_and_groups_beyond_the_end_are_errors() {
    let bench = bench().await;
    let corpus = Corpus::open(bench.path("out").to_str().unwrap())
        .await
        .unwrap();
    assert_eq!(corpus.read_row(20).await.unwrap().key, "s-0020");
    assert_eq!(corpus.read_group(5).await.unwrap().len(), 1);
    for error in [
        corpus.read_row(21).await.unwrap_err(),
        corpus.read_row(u64::MAX).await.unwrap_err(),
        corpus.read_group(6).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::OutOfRange { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_refused_with_a_reason() {
    let bench = bench().await;
    let text = std::fs::read_to_string(bench.path("out/manifest.json")).unwrap();
    for damaged in [
        &text[..text.len() / 2],
        &text.replace("\"rows\": 21", "\"rows\": 22"),
        "",
    ] {
        bench.file("out/manifest.json", damaged);
        let error = Corpus::open(bench.path("out").to_str().unwrap())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Manifest { .. }), "{error:?}");
    }
}
