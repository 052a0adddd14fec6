use super::*;

const PICTURE: RowRef = RowRef {
    source: 1,
    epoch: 0,
    row: 2,
};
const FEATURES: [f32; 3] = [1.5, -0.0, f32::MIN_POSITIVE];

fn keep(is_cautious: bool) -> Keep {
    Keep {
        key: blake3::hash(b"these pictures, those weights"),
        width: FEATURES.len(),
        rows: vec![4, 9],
        is_cautious,
    }
}

fn open_in(folder: &tempfile::TempDir, is_cautious: bool) -> KeptFeatures {
    KeptFeatures::open_in(folder.path(), &keep(is_cautious)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn files(folder: &tempfile::TempDir) -> usize {
    std::fs::read_dir(folder.path()).unwrap().count()
}

#[test]
fn all_workers_of_a_machine_share_them_to_the_bit_in_every_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (open_in(&folder, false), open_in(&folder, false));
    assert_eq!(other.get(PICTURE), None);
    one.put(PICTURE, &FEATURES);
    let later = RowRef {
        epoch: 7,
        ..PICTURE
    };
    let found = other.get(later).unwrap();
    assert_eq!(bits(&found), bits(&FEATURES));
    for neighbour in [
        RowRef { row: 1, ..PICTURE },
        RowRef { row: 3, ..PICTURE },
        RowRef {
            source: 0,
            ..PICTURE
        },
    ] {
        assert_eq!(other.get(neighbour), None, "{neighbour:?}");
    }
}

#[test]
fn the_others_get_them_once_the_weights_were_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (open_in(&folder, true), open_in(&folder, true));
    one.put(PICTURE, &FEATURES);
    assert_eq!(one.get(PICTURE), Some(FEATURES.to_vec()));
    assert_eq!(other.get(PICTURE), None);
    one.compared();
    assert_eq!(other.get(PICTURE), Some(FEATURES.to_vec()));
    assert_eq!(one.get(PICTURE), Some(FEATURES.to_vec()));
}

#[test]
fn what_a_worker_makes_outlives_it_unless_it_was_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (survivor, lost) = (open_in(&folder, true), open_in(&folder, true));
    lost.put(PICTURE, &FEATURES);
    lost.compared();
    let another = RowRef { row: 8, ..PICTURE };
    lost.put(another, &FEATURES);
    drop(lost);
    assert_eq!(survivor.get(PICTURE), Some(FEATURES.to_vec()));
    assert_eq!(survivor.get(another), None);
}

#[test]
fn damaged_and_half_written_features_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let kept = open_in(&folder, false);
    kept.put(PICTURE, &FEATURES);
    let at = kept.place(kept.slot(PICTURE).unwrap());
    let last = at + (blake3::OUT_LEN + 4 * FEATURES.len() - 1) as u64;
    for place in [at, last] {
        let mut byte = [0];
        kept.file.read_exact_at(&mut byte, place).unwrap();
        kept.file.write_all_at(&[byte[0] ^ 4], place).unwrap();
        assert_eq!(kept.get(PICTURE), None, "bit at {place}");
        kept.file.write_all_at(&byte, place).unwrap();
        assert!(kept.get(PICTURE).is_some());
    }
    kept.file.set_len(last).unwrap();
    assert_eq!(kept.get(PICTURE), None, "the last byte is missing");
}

#[test]
fn the_last_one_to_leave_removes_the_file_and_the_next_run_what_the_killed_have_left() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (open_in(&folder, false), open_in(&folder, false));
    drop(one);
    assert_eq!(files(&folder), 1);
    drop(other);
    assert_eq!(files(&folder), 0);

    let orphan = folder.path().join(format!("{PREFIX}of-another-run"));
    drop(open(&orphan).unwrap());
    std::fs::write(folder.path().join("not-ours"), "").unwrap();
    let in_use = open(&folder.path().join(format!("{PREFIX}in-use"))).unwrap();
    in_use.lock_shared().unwrap();
    let kept = open_in(&folder, false);
    assert!(!orphan.exists());
    assert_eq!(files(&folder), 3);
    drop(kept);
    assert_eq!(files(&folder), 2);
}

#[test]
fn a_run_that_begins_again_finds_what_its_killed_workers_have_left() {
    let folder = tempfile::tempdir().unwrap();
    let killed = open_in(&folder, false);
    killed.put(PICTURE, &FEATURES);
    killed.file.unlock().unwrap();
    std::mem::forget(killed);
    assert_eq!(
        open_in(&folder, false).get(PICTURE),
        Some(FEATURES.to_vec())
    );
}

#[test]
fn where_nothing_can_be_written_nothing_is_kept_and_nothing_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = open_in(&folder, true);
    kept.file = File::open(&kept.path).unwrap();
    kept.put(PICTURE, &FEATURES);
    kept.compared();
    assert!(kept.is_full.get());
    assert_eq!(kept.get(PICTURE), None);
    kept.put(PICTURE, &FEATURES);
    assert_eq!(kept.get(PICTURE), None);
}

#[test]
fn files_of_others_and_links_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder
        .path()
        .join(format!("{PREFIX}{}", keep(false).key.to_hex()));
    let open = || KeptFeatures::open_in(folder.path(), &keep(false));
    let elsewhere = folder.path().join("elsewhere");
    std::fs::write(&elsewhere, "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert!(open().is_err());
    std::fs::remove_file(&path).unwrap();

    std::fs::write(&path, "").unwrap();
    // Whatever the mask of this process is.
    let shared = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&path, shared).unwrap();
    let error = open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn what_waits_for_a_comparison_is_limited() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = open_in(&folder, true);
    kept.most_fresh = 4 * FEATURES.len() + 1;
    let row = |row| RowRef { row, ..PICTURE };
    for number in 0..4 {
        kept.put(row(number), &FEATURES);
    }
    let found = (0..4).filter(|number| kept.get(row(*number)).is_some());
    assert_eq!(found.collect::<Vec<_>>(), [0, 1]);
    kept.compared();
    kept.put(row(2), &FEATURES);
    assert!(kept.get(row(2)).is_some());
}
