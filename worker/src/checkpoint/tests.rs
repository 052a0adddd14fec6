//! Checkpoints survive kills, refuse what is wrong and say what it is.

mod faulty;
mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mks2_dataset::store::{self, Created};
use mks2_proto::failure::{ExitCode, Failure};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;

use super::{
    Checkpoint, CheckpointError, CheckpointStore, Expected, Facts, Kind, Manifest, Pool, Slot,
    Snapshot, Table, Uploaded, VERSION, manifest_path,
};
use faulty::faulty;

/// Three parameters with padding between them, out of name order.
fn table() -> Arc<Table> {
    let slot = |name: &str, shape: &[usize], offset| Slot {
        name: name.into(),
        shape: shape.to_vec(),
        offset,
    };
    let slots = [
        slot("b.weight", &[4, 3], 0),
        slot("a.weight", &[5, 2], 16),
        slot("c", &[], 32),
    ];
    Arc::new(Table::new(slots).unwrap())
}

/// Buffers whose values depend on the step; the memory of `b.weight` never changes.
fn buffer(step: u64, kind: Kind) -> Vec<f32> {
    let value = |i: usize| {
        if i < 16 {
            i as f32
        } else {
            (step * 1000 + i as u64) as f32
        }
    };
    (0..48)
        .map(|i| value(i) + kind as u8 as f32 / 8.0)
        .collect()
}

fn snapshot(step: u64) -> Snapshot {
    let mut snapshot = Pool::default().snapshot(table());
    for kind in [Kind::Weights, Kind::ExpAvg, Kind::ExpAvgSq] {
        snapshot.copy(kind, &buffer(step, kind)).unwrap();
    }
    snapshot.add_bytes(Kind::State, "reduction.exponents", vec![3, 7, step as u8]);
    snapshot.add_bytes(
        Kind::Tokenizer,
        "tokenizer.json",
        b"{\"version\":\"1.0\"}".to_vec(),
    );
    snapshot
}

fn facts(step: u64, is_final: bool) -> Facts {
    let table = |name: &str| BTreeMap::from([(name.to_owned(), format!("digest of {name}"))]);
    Facts {
        step,
        uncompared: true,
        stage: "memory".into(),
        stage_step: step,
        is_final,
        generation: 1,
        seed: 7,
        config_digest: "config".into(),
        corpora: table("emoji"),
        bases: table("bootstrap"),
        loss: Some(1.25),
        seconds: 2.5,
        samples: step * 64,
        tokens: step * 1000,
        made_with: "mks2 0.0.0".into(),
    }
}

fn expected() -> Expected {
    let facts = facts(0, false);
    Expected {
        model: Some(table()),
        seed: Some(7),
        corpora: Some(facts.corpora),
        bases: Some(facts.bases),
    }
}

/// Small parts, so that a kind has several of them.
fn checkpoints(store: Arc<dyn ObjectStore>) -> CheckpointStore {
    CheckpointStore::new(store, Path::from("runs/demo")).with_part_bytes(60)
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

async fn save(checkpoints: &CheckpointStore, step: u64, is_final: bool) -> super::Result<Uploaded> {
    let uploaded = checkpoints
        .upload(snapshot(step), facts(step, is_final))
        .await?;
    commit(checkpoints, &uploaded).await?;
    Ok(uploaded)
}

/// What the coordinator does once everything is uploaded: it creates the manifest.
async fn commit(checkpoints: &CheckpointStore, uploaded: &Uploaded) -> super::Result<()> {
    let (store, bytes) = (&*checkpoints.store, uploaded.bytes.clone());
    let path = store::under(&checkpoints.root, &uploaded.path)?;
    if store::put_create_only(store, &path, bytes).await? == Created::Exists {
        let there = store::get(store, &path).await?;
        assert_eq!(there, uploaded.bytes, "another checkpoint is committed");
    }
    Ok(())
}

async fn load(checkpoints: &CheckpointStore, step: u64) -> super::Result<Checkpoint> {
    checkpoints
        .load(&manifest_path(step), None, &expected(), &Kind::ALL)
        .await
}

async fn assert_holds(checkpoints: &CheckpointStore, step: u64) {
    let checkpoint = load(checkpoints, step).await.unwrap();
    for kind in [Kind::Weights, Kind::ExpAvg, Kind::ExpAvgSq] {
        let mut flat = vec![-1.0; 48];
        checkpoint.fill(kind, &table(), &mut flat).unwrap();
        let saved = buffer(step, kind);
        for slot in table().slots() {
            assert_eq!(
                flat[slot.range()],
                saved[slot.range()],
                "{} of step {step}",
                slot.name
            );
        }
        assert_eq!(flat[12..16], [-1.0; 4], "padding is not touched");
    }
    let state = checkpoint
        .tensor(Kind::State, "reduction.exponents")
        .unwrap();
    assert_eq!(&state.data[..], [3, 7, step as u8]);
    let tokenizer = checkpoint
        .tensor(Kind::Tokenizer, "tokenizer.json")
        .unwrap();
    assert_eq!(&tokenizer.data[..], b"{\"version\":\"1.0\"}");
}

#[tokio::test]
async fn what_is_saved_is_loaded_on_every_store() {
    let folder = tempfile::tempdir().unwrap();
    let local: Arc<dyn ObjectStore> =
        Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    for store in [memory(), local] {
        let checkpoints = checkpoints(store);
        assert!(checkpoints.list().await.unwrap().is_empty());
        let uploaded = save(&checkpoints, 100, false).await.unwrap();
        assert!(uploaded.manifest.parts.len() > 5, "parts are split");
        assert_holds(&checkpoints, 100).await;
        let weights = table().weights_digest(&buffer(100, Kind::Weights)).unwrap();
        assert_eq!(uploaded.manifest.weights_digest, weights);
        let by_hand: Vec<u8> = [16..26, 0..12, 32..33]
            .into_iter()
            .flat_map(|range| buffer(100, Kind::Weights)[range].to_vec())
            .flat_map(f32::to_le_bytes)
            .collect();
        assert_eq!(weights, blake3::hash(&by_hand).to_hex().as_str());
        let digest = Some(uploaded.digest.as_str());
        let only = checkpoints
            .load(
                &uploaded.path,
                digest,
                &Expected::default(),
                &[Kind::Weights],
            )
            .await
            .unwrap();
        assert_eq!(only.tensors(Kind::ExpAvg).count(), 0);
        assert_eq!(only.tensors(Kind::Weights).count(), 3);
    }
}

#[tokio::test]
async fn what_did_not_change_is_not_written_again() {
    let checkpoints = checkpoints(memory());
    let first = save(&checkpoints, 100, false).await.unwrap();
    assert_eq!(first.reused_bytes, 0);
    let second = save(&checkpoints, 200, false).await.unwrap();
    assert!(
        second.reused_bytes > 0,
        "b.weight and the tokenizer are the same"
    );
    let again = save(&checkpoints, 200, false).await.unwrap();
    assert_eq!((again.written_bytes, &again.digest), (0, &second.digest));
}

#[tokio::test]
async fn a_pool_gives_memory_back() {
    let pool = Pool::default();
    pool.warm(&table());
    let mut first = pool.snapshot(table());
    first
        .copy(Kind::Weights, &buffer(1, Kind::Weights))
        .unwrap();
    assert!(
        first
            .copy(Kind::Weights, &buffer(1, Kind::Weights))
            .is_err()
    );
    assert!(first.copy(Kind::ExpAvg, &[0.0; 32]).is_err());
    let place = first.buffers()[0].1.as_ptr();
    drop(first);
    let mut second = pool.snapshot(table());
    second
        .copy(Kind::Weights, &buffer(2, Kind::Weights))
        .unwrap();
    assert_eq!(second.buffers()[0].1.as_ptr(), place);
    assert!(second.blocked() > std::time::Duration::ZERO);
}

/// Changes one stored object and returns what loading says.
async fn after(change: impl Fn(&mut Vec<u8>), path: &str) -> Failure {
    let memory = memory();
    let checkpoints = checkpoints(Arc::clone(&memory));
    save(&checkpoints, 100, false).await.unwrap();
    let path = store::under(&Path::from("runs/demo"), path).unwrap();
    let mut bytes = store::get(&*memory, &path).await.unwrap().to_vec();
    change(&mut bytes);
    store::put(&*memory, &path, Bytes::from(bytes))
        .await
        .unwrap();
    let error = load(&checkpoints, 100).await.unwrap_err();
    assert!(error.is_refusal());
    let failure = Failure::from(error);
    assert_eq!(failure.exit, ExitCode::Checkpoint);
    assert!(!failure.cure.is_empty());
    failure
}

async fn part(index: usize) -> super::Part {
    let uploaded = save(&checkpoints(memory()), 100, false).await.unwrap();
    uploaded.manifest.parts[index].clone()
}

#[tokio::test]
async fn one_flipped_byte_is_refused_with_the_part_and_the_tensor() {
    for index in 0..3 {
        let part = part(index).await;
        let object = part.path.clone();
        let entry = &part.tensors[0];
        let at = entry.offset as usize + 5;
        let why = after(|bytes| bytes[at] ^= 1, &object).await.why;
        assert!(
            why.contains(&part.name) && why.contains(&entry.name),
            "{why}"
        );
        assert!(why.contains(&format!("bytes {} to", entry.offset)), "{why}");
        let why = after(|bytes| bytes[9] ^= 1, &object).await.why;
        assert!(why.contains(&part.name) && why.contains("header"), "{why}");
        let why = after(|bytes| bytes.truncate(50), &object).await.why;
        assert!(
            why.contains(&part.name) && why.contains("length: 50 bytes"),
            "{why}"
        );
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_refused() {
    let path = manifest_path(100);
    let cut = after(|bytes| bytes.truncate(300), &path).await;
    assert!(
        cut.why.contains("manifest.json is damaged: it is cut off"),
        "{}",
        cut.why
    );
    let empty = after(Vec::clear, &path).await;
    assert!(empty.why.contains("cut off"), "{}", empty.why);
    let newer = |bytes: &mut Vec<u8>| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text
            .replacen(&format!("\"version\": {VERSION}"), "\"version\": 9", 1)
            .into_bytes();
    };
    let newer = after(newer, &path).await;
    assert!(newer.why.contains("version 9"), "{}", newer.why);
    let checkpoints = checkpoints(memory());
    save(&checkpoints, 100, false).await.unwrap();
    let other = checkpoints.manifest(&path, Some("00")).await.unwrap_err();
    assert!(other.to_string().contains("committed was 00"), "{other}");
    let none = checkpoints
        .manifest(&manifest_path(5), None)
        .await
        .unwrap_err();
    assert!(matches!(none, CheckpointError::NoManifest { .. }));
}

#[tokio::test]
async fn a_missing_object_is_refused() {
    let memory = memory();
    let checkpoints = checkpoints(Arc::clone(&memory));
    let uploaded = save(&checkpoints, 100, false).await.unwrap();
    let part = &uploaded.manifest.parts[1];
    store::delete(&*memory, &checkpoints.object(&part.path).unwrap())
        .await
        .unwrap();
    let why = load(&checkpoints, 100).await.unwrap_err().to_string();
    assert!(
        why.contains(&part.name) && why.contains(&part.digest),
        "{why}"
    );
}

#[tokio::test]
async fn a_checkpoint_of_another_run_is_refused() {
    let checkpoints = checkpoints(memory());
    save(&checkpoints, 100, false).await.unwrap();
    let refusal = async |change: &dyn Fn(&mut Expected)| {
        let mut expected = expected();
        change(&mut expected);
        let loaded = checkpoints
            .load(&manifest_path(100), None, &expected, &Kind::ALL)
            .await;
        loaded.unwrap_err().to_string()
    };
    let slot = |name: &str, shape: &[usize]| Slot {
        name: name.into(),
        shape: shape.to_vec(),
        offset: 0,
    };
    let model = |slots: Vec<Slot>| Some(Arc::new(Table::new(slots).unwrap()));
    let (a, b, c) = (
        slot("a.weight", &[5, 2]),
        slot("b.weight", &[4, 3]),
        slot("c", &[]),
    );
    let wide = vec![a.clone(), slot("b.weight", &[4, 4]), c.clone()];
    let text = refusal(&|e| e.model = model(wide.clone())).await;
    assert!(
        text.contains("'b.weight' is [4, 3], the job's is [4, 4]"),
        "{text}"
    );
    let text = refusal(&|e| e.model = model(vec![a.clone(), c.clone()])).await;
    assert!(text.contains("it has 'b.weight'"), "{text}");
    let more = vec![a.clone(), slot("aa", &[1]), b.clone(), c.clone()];
    let text = refusal(&|e| e.model = model(more.clone())).await;
    assert!(text.contains("it lacks 'aa' [1]"), "{text}");
    let text = refusal(&|e| e.model = model(vec![a.clone(), b.clone()])).await;
    assert!(text.contains("it has 'c'"), "{text}");
    let text = refusal(&|e| e.seed = Some(8)).await;
    assert!(text.contains("seed 7") && text.contains("seed 8"), "{text}");
    let other = || Some(BTreeMap::from([("emoji".to_owned(), "x".to_owned())]));
    let text = refusal(&|e| e.corpora = other()).await;
    assert!(text.contains("corpus 'emoji' has digest x"), "{text}");
    let text = refusal(&|e| e.bases = other()).await;
    assert!(
        text.contains("the checkpoint knows no stage 'emoji'"),
        "{text}"
    );
    let text = refusal(&|e| e.bases = Some(BTreeMap::new())).await;
    assert!(
        text.contains("has stage 'bootstrap', the job has not"),
        "{text}"
    );
}

#[tokio::test]
async fn an_upload_that_fails_is_an_error_of_the_store() {
    let inner = memory();
    save(&checkpoints(Arc::clone(&inner)), 100, false)
        .await
        .unwrap();
    let broken = checkpoints(faulty(Arc::clone(&inner), 2));
    let error = broken
        .upload(snapshot(200), facts(200, false))
        .await
        .unwrap_err();
    assert!(!error.is_refusal());
    assert_eq!(Failure::from(error).exit, ExitCode::Storage);
    assert_holds(&checkpoints(inner), 100).await;
}

#[test]
fn a_loss_that_is_no_number_is_left_out() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let facts = Facts {
        loss: Some(f64::NAN),
        ..facts(1, false)
    };
    let checkpoints = checkpoints(memory());
    let uploaded = runtime
        .block_on(checkpoints.upload(snapshot(1), facts))
        .unwrap();
    let read = Manifest::parse("x", &uploaded.bytes).unwrap();
    assert_eq!(read.facts.loss, None);
    assert_eq!(read, uploaded.manifest);
}
