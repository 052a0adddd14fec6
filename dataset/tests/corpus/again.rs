//! Imports that are repeated, interrupted, or meet another corpus.

use std::sync::atomic::{AtomicU64, Ordering};

use mks2_dataset::error::Error;
use mks2_dataset::import::import;

use crate::support::{Bench, good_tar, sample, tar, tree};

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_import_ends_with_the_same_bytes_when_started_again() {
    let bench = Bench::new();
    let source = bench.file("x.tar", good_tar(0, 60));
    bench.import(&[&source], "whole").await.unwrap();
    let whole = tree(&bench.path("whole"));
    for stop_at in [1, 9, 30, 59] {
        let out = format!("stopped-{stop_at}");
        let options = bench.options(&[&source], &out);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stop = std::sync::Mutex::new(Some(stop));
        let rows = AtomicU64::new(0);
        let watch = |now: &mks2_dataset::import::Progress| {
            rows.store(now.rows, Ordering::Relaxed);
            if now.rows >= stop_at {
                drop(stop.lock().unwrap().take());
            }
        };
        tokio::select! {
            biased;
            _ = stopped => {}
            _ = import(&options, &watch) => {}
        }
        assert!(rows.load(Ordering::Relaxed) >= stop_at);
        // What a killed process leaves behind besides: halves, and shards of another import.
        bench.file(&format!("{out}/shards/part-00001.parquet#3"), b"half");
        bench.file(&format!("{out}/shards/part-00099.parquet"), b"stale");
        bench.file(&format!("{out}/shards/part-00000.parquet"), b"other");
        let manifest = bench.path(&out).join("manifest.json");
        if manifest.exists() {
            std::fs::remove_file(manifest).unwrap();
        }
        let summary = bench.import(&[&source], &out).await.unwrap();
        assert_eq!(summary.rows, 60);
        assert_eq!(tree(&bench.path(&out)), whole, "stopped at {stop_at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_import_again_writes_nothing_and_says_so() {
    let bench = Bench::new();
    let source = bench.file("x.tar", good_tar(0, 21));
    let first = bench.import(&[&source], "out").await.unwrap();
    let written = |name: &str| {
        std::fs::metadata(bench.path(name))
            .unwrap()
            .modified()
            .unwrap()
    };
    let files = [
        "out/manifest.json",
        "out/shards/part-00002.parquet",
        "out/quarantine.jsonl",
    ];
    let before: Vec<_> = files.iter().map(|name| written(name)).collect();
    let again = bench.import(&[&source], "out").await.unwrap();
    assert!(again.identical && !first.identical);
    assert_eq!((again.digest, again.rows), (first.digest, first.rows));
    assert_eq!(
        before,
        files.iter().map(|name| written(name)).collect::<Vec<_>>()
    );
    // A shard that has gone missing is made again.
    let whole = tree(&bench.path("out"));
    std::fs::remove_file(bench.path("out/shards/part-00001.parquet")).unwrap();
    assert!(bench.import(&[source], "out").await.unwrap().identical);
    assert_eq!(tree(&bench.path("out")), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_corpus_is_not_replaced_unless_asked_for() {
    let bench = Bench::new();
    let first = bench.file("a.tar", good_tar(0, 21));
    let others = [
        bench.file("fewer.tar", good_tar(0, 20)),
        bench.file("more.tar", good_tar(0, 25)),
        bench.file("other.tar", tar(&[sample("x", 1)])),
    ];
    bench.import(&[&first], "out").await.unwrap();
    let before = tree(&bench.path("out"));
    for other in &others {
        let error = bench.import(&[&other], "out").await.unwrap_err();
        assert!(matches!(error, Error::OtherCorpus { .. }), "{error:?}");
        assert_eq!(tree(&bench.path("out")), before);
    }
    let mut options = bench.options(&[first], "out");
    options.row_group_rows = 8;
    let error = import(&options, &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::OtherCorpus { .. }));
    let mut options = bench.options(&[&others[2]], "out");
    options.overwrite = true;
    let summary = import(&options, &|_| {}).await.unwrap();
    assert_eq!(
        (summary.rows, summary.shards, summary.identical),
        (1, 1, false)
    );
    let names: Vec<_> = tree(&bench.path("out")).into_keys().collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_checking_does_not_show_in_the_bytes() {
    let bench = Bench::new();
    let source = bench.file("x.tar", good_tar(0, 100));
    bench.import(&[&source], "a").await.unwrap();
    let here = tree(&bench.path("a"));
    // One thread of a runtime of its own.
    let options = bench.options(&[source], "b");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(import(&options, &|_| {})).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(tree(&bench.path("b")), here);
}
