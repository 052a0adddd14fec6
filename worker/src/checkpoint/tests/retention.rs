//! Retention, sweeping, and kills between any two operations.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use mks2_dataset::store;
use object_store::ObjectStore;
use object_store::path::Path;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

use super::faulty::faulty;
use super::{
    CheckpointStore, assert_holds, checkpoints, commit, expected, facts, memory, save, snapshot,
};
use crate::checkpoint::{CheckpointEntry, Facts, manifest_path};

/// What the coordinator releases: all but the `keep_last` latest inside stages, never the latest.
fn surplus(entries: &[CheckpointEntry], keep_last: usize) -> Vec<String> {
    let latest = entries.iter().map(|entry| entry.step).max();
    let mut inside: Vec<&CheckpointEntry> =
        entries.iter().filter(|entry| !entry.is_final).collect();
    inside.sort_by_key(|entry| std::cmp::Reverse(entry.step));
    let released = inside.into_iter().skip(keep_last);
    released
        .filter(|entry| Some(entry.step) != latest)
        .map(|entry| entry.path.clone())
        .collect()
}

async fn release(
    checkpoints: &CheckpointStore,
    keep_last: usize,
) -> crate::checkpoint::Result<crate::checkpoint::Swept> {
    let paths = surplus(&checkpoints.list().await?, keep_last);
    checkpoints.sweep(&paths, 1).await
}

#[tokio::test]
async fn a_sweep_deletes_what_nobody_needs_and_nothing_else() {
    let checkpoints = checkpoints(memory());
    for (step, is_final) in [(100, false), (200, true), (300, false), (400, false)] {
        save(&checkpoints, step, is_final).await.unwrap();
    }
    // Stored, not committed: interrupted uploads and one under way.
    drop(
        checkpoints
            .upload(snapshot(450), facts(450, false))
            .await
            .unwrap(),
    );
    let under_way = checkpoints
        .upload(snapshot(500), facts(500, false))
        .await
        .unwrap();
    let swept = release(&checkpoints, 1).await.unwrap();
    assert_eq!(swept.manifests, 2);
    assert!(swept.objects > 0 && swept.bytes > 0);
    commit(&checkpoints, &under_way).await.unwrap();
    for step in [200, 400, 500] {
        assert_holds(&checkpoints, step).await;
    }
    assert!(
        checkpoints
            .load(&manifest_path(300), None, &expected(), &[])
            .await
            .is_err()
    );
    drop(under_way);
    assert_eq!(
        checkpoints.sweep(&[], 1).await.unwrap(),
        crate::checkpoint::Swept::default()
    );
}

/// One that was taken for dead in the midst of a sweep wakes up when others have gone on: with the
/// same values, too, since a step may be saved again.
#[tokio::test]
async fn a_sweep_takes_nothing_from_later_generations() {
    let memory = memory();
    let (sleeper, successor) = (checkpoints(Arc::clone(&memory)), checkpoints(memory));
    save(&sleeper, 100, false).await.unwrap();
    // Uploaded, and not committed before the generation was over.
    drop(
        sleeper
            .upload(snapshot(200), facts(200, false))
            .await
            .unwrap(),
    );
    let later = Facts {
        generation: 2,
        ..facts(200, false)
    };
    let under_way = successor.upload(snapshot(200), later).await.unwrap();
    assert_eq!(
        under_way.reused_bytes, 0,
        "what others may delete is not used"
    );
    assert!(sleeper.sweep(&[], 1).await.unwrap().objects > 0);
    commit(&successor, &under_way).await.unwrap();
    for step in [100, 200] {
        assert_holds(&successor, step).await;
    }
    let released = vec![manifest_path(100)];
    assert!(successor.sweep(&released, 2).await.unwrap().objects > 0);
    assert_holds(&successor, 200).await;
}

#[tokio::test]
async fn a_sweep_next_to_a_manifest_that_it_can_not_read_deletes_no_object() {
    let memory = memory();
    let checkpoints = checkpoints(Arc::clone(&memory));
    save(&checkpoints, 100, false).await.unwrap();
    save(&checkpoints, 200, false).await.unwrap();
    let path = store::under(&Path::from("runs/demo"), &manifest_path(200)).unwrap();
    let intact = store::get(&*memory, &path).await.unwrap();
    store::put(&*memory, &path, Bytes::from_static(b"{"))
        .await
        .unwrap();
    assert!(checkpoints.sweep(&[], 1).await.is_err());
    store::put(&*memory, &path, intact).await.unwrap();
    assert_holds(&checkpoints, 200).await;
}

/// A run that checkpoints and sweeps until the store dies; the steps that it saw committed.
async fn run_until_killed(store: Arc<dyn ObjectStore>, first: u64, committed: &mut Vec<u64>) {
    let checkpoints = checkpoints(store);
    for step in first..first + 6 {
        let is_final = step % 3 == 0;
        match save(&checkpoints, step, is_final).await {
            Ok(_) => committed.push(step),
            Err(_) => return,
        }
        if release(&checkpoints, 1).await.is_err() {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A kill between any two operations: the last committed checkpoint loads, finals are all
    /// there, and the next run goes on and sweeps up.
    #[test]
    fn kills_leave_a_last_checkpoint_that_loads(first_kill in 0_i64..60, second_kill in 0_i64..60) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let inner = memory();
            let mut committed = Vec::new();
            for kill in [first_kill, second_kill] {
                let next = committed.last().map_or(1, |step| step + 1);
                let dying = faulty(Arc::clone(&inner), kill);
                run_until_killed(dying, next, &mut committed).await;
                let healthy = checkpoints(Arc::clone(&inner));
                let there: Vec<u64> =
                    healthy.list().await.unwrap().iter().map(|entry| entry.step).collect();
                prop_assert!(committed.last().is_none_or(|step| there.contains(step)));
                for step in committed.iter().filter(|step| *step % 3 == 0) {
                    prop_assert!(there.contains(step), "final {} is gone", step);
                }
                for step in there {
                    assert_holds(&healthy, step).await;
                }
            }
            let healthy = checkpoints(Arc::clone(&inner));
            release(&healthy, 1).await.unwrap();
            let mut needed = BTreeSet::new();
            for entry in healthy.list().await.unwrap() {
                let manifest = healthy.manifest(&entry.path, None).await.unwrap();
                needed.extend(manifest.parts.into_iter().map(|part| part.path));
                assert_holds(&healthy, entry.step).await;
            }
            let stored = healthy.paths("objects").await.unwrap().len();
            prop_assert_eq!(stored, needed.len(), "nothing is left behind");
            Ok(())
        })?;
    }
}
