//! WebDataset tars: what a good import gives.

use mks2_dataset::import::{Options, import};
use mks2_dataset::inspect::inspect;
use mks2_dataset::row::render;
use mks2_dataset::store;
use mks2_dataset::verify::verify;

use crate::support::{Bench, entry, example, good_tar, header, png, rows, sample, tar};

#[tokio::test(flavor = "multi_thread")]
async fn rows_keep_the_order_of_sources_and_their_content() {
    let bench = Bench::new();
    bench.file("a-0.tar", good_tar(0, 11));
    bench.file("a-1.tar", good_tar(11, 10));
    let pattern = bench.path("a-{0..1}.tar").to_str().unwrap().to_owned();
    let summary = bench.import(&[pattern], "out").await.unwrap();
    assert_eq!(
        (summary.rows, summary.quarantined, summary.shards),
        (21, 0, 3)
    );
    assert!(!summary.identical);
    let rows = bench.rows("out").await;
    assert_eq!(rows.len(), 21);
    for (at, row) in rows.iter().enumerate() {
        assert_eq!(row.index, at as u64);
        assert_eq!(row.key, format!("s-{at:04}"));
        assert_eq!(
            row.caption.as_deref(),
            Some(&*format!("caption of s-{at:04}"))
        );
        assert_eq!(row.image.as_deref(), Some(&*png(at)));
        assert_eq!(render("a {name}", row).unwrap(), format!("a thing {at}"));
    }
    let found = verify(bench.path("out").to_str().unwrap(), &|_, _| {})
        .await
        .unwrap();
    assert_eq!(
        (found.rows, found.pictures, found.problems_total),
        (21, 21, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_emoji_corpus_is_imported_without_a_loss_in_seconds() {
    let bench = Bench::new();
    let out = bench.path("emoji").to_str().unwrap().to_owned();
    let options = Options::new(vec![example("emoji-{00000..00003}.tar")], &out);
    let summary = import(&options, &|_| {}).await.unwrap();
    assert_eq!(
        (summary.rows, summary.quarantined, summary.shards),
        (1580, 0, 1)
    );
    // The promise is 5 seconds on a quiet machine; tests share theirs.
    assert!(summary.seconds < 20.0, "{} s", summary.seconds);
    let look = inspect(&out, 3).await.unwrap();
    assert_eq!(look.columns.image, 1580);
    for field in ["name", "keywords", "group", "caption", "key"] {
        assert!(look.fields.iter().any(|name| name == field), "{field}");
    }
    assert_eq!(look.samples.len(), 3);
    let text = render("a picture of the {name}", &look.samples[0]).unwrap();
    assert_eq!(text, "a picture of the Sagittarius");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stores_serve_as_source_and_destination() {
    let (store, root) = store::open("memory://tars/in").unwrap();
    let path = store::under(&root, "x.tar").unwrap();
    store::put(&*store, &path, good_tar(0, 9).into())
        .await
        .unwrap();
    let source = "memory://tars/in/x.tar".to_owned();
    let summary = import(&Options::new(vec![source], "memory://tars/out"), &|_| {})
        .await
        .unwrap();
    assert_eq!(summary.rows, 9);
    assert_eq!(rows("memory://tars/out").await.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_play_no_part_are_passed_over() {
    let bench = Bench::new();
    let parts = [
        header(b"folder/", 0, b'5').to_vec(),
        entry(b"./folder/a.b/one.jpeg", &png(1)),
        entry(b"folder/a.b/one.cls", b"7"),
        entry(
            b"./folder/a.b/one.json",
            br#"{"question": "q?", "answer": "yes"}"#,
        ),
        entry(b"README", b"hello"),
        entry(b"._one.txt", b"litter"),
        sample("two", 2),
    ];
    let source = bench.file("x.tar", tar(&parts));
    let summary = bench.import(&[source], "out").await.unwrap();
    assert_eq!(
        (summary.rows, summary.quarantined),
        (2, 0),
        "{:?}",
        summary.reasons
    );
    let rows = bench.rows("out").await;
    assert_eq!(rows[0].key, "folder/a.b/one");
    assert_eq!(rows[0].answer.as_deref(), Some("yes"));
    assert_eq!(rows[1].key, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_names_of_another_writer_are_read() {
    let bench = Bench::new();
    let stem = format!(
        "{}/{}",
        "deep/".repeat(30).trim_end_matches('/'),
        "n".repeat(120)
    );
    let mut builder = tokio_tar::Builder::new(Vec::new());
    for (ending, content) in [("png", png(3)), ("txt", b"long".to_vec())] {
        let mut header = tokio_tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let name = format!("{stem}.{ending}");
        builder
            .append_data(&mut header, name, content.as_slice())
            .await
            .unwrap();
    }
    let source = bench.file("x.tar", builder.into_inner().await.unwrap());
    let summary = bench.import(&[source], "out").await.unwrap();
    assert_eq!(
        (summary.rows, summary.quarantined),
        (1, 0),
        "{:?}",
        summary.reasons
    );
    assert_eq!(bench.rows("out").await[0].key, stem);
}

#[tokio::test(flavor = "multi_thread")]
async fn pax_paths_are_read() {
    let bench = Bench::new();
    let pax = |name: &str| {
        let record = format!(" path={name}\n");
        let length = record.len() + 2;
        let record = format!("{length}{record}");
        assert_eq!(record.len(), length);
        let mut block = header(b"PaxHeaders/x", record.len(), b'x').to_vec();
        block.extend_from_slice(record.as_bytes());
        block.resize(1024, 0);
        block
    };
    let parts = [
        pax("einhörnchen-und-andere-tiere.png"),
        entry(b"short.png", &png(1)),
        pax("einhörnchen-und-andere-tiere.txt"),
        entry(b"short.txt", b"a squirrel"),
    ];
    let source = bench.file("x.tar", tar(&parts));
    bench.import(&[source], "out").await.unwrap();
    assert_eq!(
        bench.rows("out").await[0].key,
        "einhörnchen-und-andere-tiere"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tar_without_its_end_blocks_is_read_and_remarked_on() {
    let bench = Bench::new();
    let cut = bench.file("x.tar", sample("only", 1));
    let whole = bench.file("y.tar", good_tar(0, 1));
    let summary = bench.import(&[cut.clone(), whole], "out").await.unwrap();
    assert_eq!((summary.rows, summary.quarantined), (2, 0));
    assert_eq!(summary.without_end, [cut], "but it may have been cut there");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_rises_to_the_end_of_all_sources() {
    let bench = Bench::new();
    let sources = [
        bench.file("a.tar", good_tar(0, 5)),
        bench.file("b.tar", good_tar(5, 5)),
    ];
    let seen = std::sync::Mutex::new(Vec::new());
    let watch = |now: &mks2_dataset::import::Progress| {
        seen.lock()
            .unwrap()
            .push((now.bytes, now.bytes_total, now.rows));
    };
    import(&bench.options(&sources, "out"), &watch)
        .await
        .unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), 10);
    assert!(seen.is_sorted());
    assert!(seen.iter().all(|(bytes, total, _)| bytes < total));
}
