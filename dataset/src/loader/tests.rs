//! The loader gives what the plan says, whoever asks and whatever the store does.

mod troubled;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use image::{ImageFormat, Rgb, RgbImage};
use mks2_proto::failure::{ExitCode, Failure};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use tokio::runtime::{Builder, Runtime};

use super::{LoadError, Loader, MicroBatch, Settings};
use crate::manifest::{MANIFEST_FILE, Manifest, ShardEntry, VERSION, shard_path};
use crate::plan::{CorpusShape, Plan};
use crate::reader::Corpus;
use crate::row::Row;
use crate::store::injected::Injected;
use crate::{shard, store};
use troubled::{Reads, Trouble};

const SIDE: u32 = 8;

/// A picture of one colour: the row's.
fn png(row: u64, red: u8) -> Bytes {
    let colour = Rgb([red, row as u8, (row >> 8) as u8]);
    let mut file = Cursor::new(Vec::new());
    RgbImage::from_pixel(10, 12, colour)
        .write_to(&mut file, ImageFormat::Png)
        .unwrap();
    file.into_inner().into()
}

fn row(index: u64, red: u8) -> Row {
    Row {
        index,
        key: format!("row-{index}"),
        // Every fifth row is text alone.
        image: (!index.is_multiple_of(5)).then(|| png(index, red)),
        caption: Some(format!("caption {index}")),
        ..Row::default()
    }
}

/// Writes a corpus with groups of 16 rows, three groups to a shard.
async fn write(store: &dyn ObjectStore, root: &str, rows: u64, red: u8) {
    let root = Path::from(root);
    let mut shards = Vec::new();
    for (index, first) in (0..rows).step_by(48).enumerate() {
        let in_shard = (rows - first).min(48);
        let mut writer = shard::writer(Vec::new()).unwrap();
        for begin in (first..first + in_shard).step_by(16) {
            let end = (begin + 16).min(first + in_shard);
            let group: Vec<Row> = (begin..end).map(|index| row(index, red)).collect();
            writer.write(&shard::to_batch(&group).unwrap()).unwrap();
            writer.flush().unwrap();
        }
        let file = writer.into_inner().unwrap();
        let entry = ShardEntry {
            path: shard_path(index),
            rows: in_shard,
            bytes: file.len() as u64,
            digest: blake3::hash(&file).to_hex().to_string(),
        };
        let path = store::under(&root, &entry.path).unwrap();
        store::put(store, &path, file.into()).await.unwrap();
        shards.push(entry);
    }
    let (row_group_rows, row_groups_per_shard) = (16, 3);
    let manifest = Manifest {
        version: VERSION,
        rows,
        row_group_rows,
        row_groups_per_shard,
        shards,
        ..Manifest::default()
    };
    let path = store::under(&root, MANIFEST_FILE).unwrap();
    store::put(store, &path, manifest.to_json().into())
        .await
        .unwrap();
}

struct Bed {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    trouble: Arc<Trouble>,
    corpora: Vec<Corpus>,
    plan: Plan,
}

/// Two corpora of 150 and 40 rows, 4 lanes of 6 samples.
fn bed() -> Bed {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let trouble = Arc::new(Trouble::none());
    let store = Injected::new(Arc::new(InMemory::new()), Arc::clone(&trouble));
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    let corpora: Vec<Corpus> = runtime.block_on(async {
        write(&*store, "a", 150, 1).await;
        write(&*store, "b", 40, 2).await;
        let a = Corpus::open_in(Arc::clone(&store), Path::from("a"), "mem://a")
            .await
            .unwrap();
        let b = Corpus::open_in(Arc::clone(&store), Path::from("b"), "mem://b")
            .await
            .unwrap();
        vec![a, b]
    });
    let shape = |rows| CorpusShape {
        rows,
        group_rows: 16,
    };
    let plan = Plan::new(3, "memory", &[(shape(150), 2.0), (shape(40), 1.0)], 4, 6).unwrap();
    Bed {
        runtime,
        store,
        trouble,
        corpora,
        plan,
    }
}

impl Bed {
    fn loader(&self, lanes: &[u32], settings: &Settings) -> Loader {
        let (corpora, plan) = (self.corpora.clone(), self.plan.clone());
        let runtime = self.runtime.handle().clone();
        Loader::new(corpora, plan, lanes, 0..30, settings, runtime).unwrap()
    }
}

fn settings() -> Settings {
    Settings {
        side: Some(SIDE),
        ..Settings::default()
    }
}

fn assert_is_what_the_plan_says(plan: &Plan, batch: &MicroBatch) {
    let at: Vec<_> = batch.samples.iter().map(|sample| sample.at).collect();
    assert_eq!(at, plan.rows(batch.step, batch.lane).collect::<Vec<_>>());
    for sample in &batch.samples {
        let index = sample.at.row;
        assert_eq!(
            (sample.row.index, &sample.row.key),
            (index, &format!("row-{index}"))
        );
        assert!(
            sample.row.image.is_none(),
            "encoded pictures are not passed on"
        );
        assert_eq!(sample.pixels.is_some(), index % 5 != 0);
        if let Some(pixels) = &sample.pixels {
            assert_eq!(pixels.len() as u32, SIDE * SIDE * 3);
            assert_eq!(pixels[..3], [sample.at.source as u8 + 1, index as u8, 0]);
        }
    }
}

#[test]
fn the_rows_are_the_same_for_any_number_of_workers() {
    let bed = bed();
    for workers in 1..=4_u32 {
        let mut seen = BTreeMap::new();
        for worker in 0..workers {
            let lanes: Vec<u32> = (0..4).filter(|lane| lane % workers == worker).collect();
            let loader = bed.loader(&lanes, &settings());
            for step in 0..30 {
                // Any order of lanes: here it changes from step to step.
                for turn in 0..lanes.len() {
                    let lane = lanes[(turn + step as usize) % lanes.len()];
                    let batch = loader.next(step, lane).unwrap();
                    assert_is_what_the_plan_says(&bed.plan, &batch);
                    assert!(seen.insert((step, lane), batch).is_none());
                }
            }
        }
        assert_eq!(seen.len(), 120);
    }
}

#[test]
fn tight_bounds_change_nothing_but_the_reads() {
    let bed = bed();
    let tight = Settings {
        threads: 3,
        ahead_steps: 1,
        ahead_bytes: 1,
        group_bytes: 1,
        picture_bytes: 0,
        ..settings()
    };
    let loader = bed.loader(&[3, 1], &tight);
    for step in 0..30 {
        for lane in [1, 3] {
            assert_is_what_the_plan_says(&bed.plan, &loader.next(step, lane).unwrap());
        }
    }
    let roomy = bed.loader(&[3, 1], &settings());
    for step in 0..30 {
        for lane in [1, 3] {
            assert_is_what_the_plan_says(&bed.plan, &roomy.next(step, lane).unwrap());
        }
    }
    assert_eq!(roomy.groups_read(), 13, "each of the groups once");
    assert!(loader.groups_read() > 26);
}

#[test]
fn steps_may_be_skipped_and_asked_for_again() {
    let bed = bed();
    let loader = bed.loader(&[0, 1, 2, 3], &settings());
    for step in [0, 7, 7, 3, 29, 28] {
        for lane in [2, 0, 2] {
            assert_is_what_the_plan_says(&bed.plan, &loader.next(step, lane).unwrap());
        }
    }
    assert!(matches!(loader.next(30, 0), Err(LoadError::NotOurs { .. })));
    assert!(matches!(loader.next(0, 4), Err(LoadError::NotOurs { .. })));
    assert!(loader.waited() > Duration::ZERO);
}

#[test]
fn without_a_side_nothing_is_decoded() {
    let bed = bed();
    let loader = bed.loader(&[0], &Settings::default());
    let batch = loader.next(0, 0).unwrap();
    assert!(batch.samples.iter().all(|sample| sample.pixels.is_none()));
}

#[test]
fn a_read_that_fails_says_where_and_may_be_tried_again() {
    let bed = bed();
    bed.trouble.set(Reads::Fail);
    let loader = bed.loader(&[0, 1], &settings());
    let error = loader.next(0, 1).unwrap_err();
    let failure = Failure::from(error);
    assert_eq!(failure.exit, ExitCode::Storage);
    assert!(failure.why.contains("row group"), "{failure}");
    assert!(failure.why.contains("shards/part-0000"), "{failure}");
    assert!(failure.why.contains("connection reset"), "{failure}");
    bed.trouble.set(Reads::Slow);
    assert_is_what_the_plan_says(&bed.plan, &loader.next(0, 1).unwrap());
}

#[test]
fn a_damaged_shard_is_named() {
    let bed = bed();
    bed.runtime.block_on(async {
        for shard in 0..4 {
            let path = store::under(&Path::from("a"), &shard_path(shard)).unwrap();
            let mut file = store::get(&*bed.store, &path).await.unwrap().to_vec();
            file.iter_mut().take(2000).for_each(|byte| *byte ^= 0x5a);
            store::put(&*bed.store, &path, file.into()).await.unwrap();
        }
    });
    let loader = bed.loader(&[0, 1, 2, 3], &settings());
    let failures: Vec<Failure> = (0..4)
        .filter_map(|lane| loader.next(0, lane).err())
        .map(Failure::from)
        .collect();
    assert!(!failures.is_empty());
    for failure in failures {
        assert_eq!(failure.exit, ExitCode::Data);
        assert!(failure.why.contains("shards/part-0000"), "{failure}");
    }
}

#[test]
fn a_store_that_never_answers_ends_in_an_error_and_dropping_does_not_wait() {
    let bed = bed();
    bed.trouble.set(Reads::Stall);
    let impatient = Settings {
        timeout: Duration::from_millis(50),
        ..settings()
    };
    let loader = bed.loader(&[0], &impatient);
    let error = loader.next(0, 0).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Timeout {
                step: 0,
                lane: 0,
                ..
            }
        ),
        "{error}"
    );
    // The read would never end.
    drop(loader);
}

#[test]
fn corpora_of_another_shape_are_refused() {
    let bed = bed();
    let start = |corpora: Vec<Corpus>, lanes: &[u32]| {
        let runtime = bed.runtime.handle().clone();
        let started = Loader::new(corpora, bed.plan.clone(), lanes, 0..1, &settings(), runtime);
        started.unwrap_err().to_string()
    };
    assert!(start(bed.corpora[..1].to_vec(), &[0]).contains("the plan has 2"));
    let swapped = bed.corpora.iter().rev().cloned().collect();
    assert!(start(swapped, &[0]).contains("40 rows in groups of 16"));
    assert!(start(bed.corpora.clone(), &[4]).contains("no lane 4"));
    assert!(start(bed.corpora.clone(), &[]).contains("no lane is held"));
}
