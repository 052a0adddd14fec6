//! Whole books hold, and every kind of tampering is found where it was done.

mod books;
mod parts;

use books::{Book, LANES, TOTAL};
use proptest::{prelude::*, sample::Index};

use super::Violation;
use crate::journal::{Entry, Record};

#[track_caller]
fn found(violations: &[Violation], place: &str, words: &str) {
    let fits = |v: &Violation| v.place.contains(place) && v.what.contains(words);
    assert!(
        violations.iter().any(fits),
        "'{words}' at {place} is not in {violations:#?}"
    );
    assert!(violations.iter().all(|v| !v.cure.is_empty()));
}

#[test]
fn whole_books_hold() {
    let book = Book::finished();
    let books = book.read();
    assert_eq!(books.violations, []);
    assert_eq!(books.steps.committed.len() as u64, TOTAL);
    assert_eq!(books.timeline.terms, 2);
    let kept: Vec<u64> = books.timeline.kept().map(|kept| kept.step).collect();
    assert_eq!(kept, [40, 60, 70, 90]);
    let first = |step| {
        let found = books.timeline.first_with(step).expect("a checkpoint");
        (found.checkpoint.step, found.released_by.is_some())
    };
    assert_eq!(
        [first(1), first(20), first(21)],
        [(20, true), (20, true), (40, false)]
    );
    assert_eq!(first(90), (90, false));
}

#[test]
fn lanes_belong_to_who_held_them_when_the_step_was_committed() {
    let books = Book::finished().read();
    let holder = |step, lane| {
        let (formed, member) = books.holder(step, lane).expect("a holder");
        (formed.generation.0, member.member.to_string())
    };
    assert_eq!(holder(30, 3), (1, "worker-1".to_owned()));
    assert_eq!(holder(31, 3), (2, "worker-0".to_owned()));
    assert_eq!(holder(90, 1), (3, "worker-1".to_owned()));
    assert!(books.holder(TOTAL + 1, 0).is_none());
}

#[test]
fn a_run_in_any_state_holds() {
    for records in 1..=Book::finished().records.len() {
        let mut book = Book::finished();
        book.records.truncate(records);
        // As many lines as the last record allows at most, and at least.
        for lines in book.possible_lines() {
            let mut cut = book.clone();
            cut.lines.retain(|line| line.0 <= lines);
            let violations = cut.read().violations;
            assert_eq!(violations, [], "{records} records, {lines} lines");
        }
    }
}

#[test]
fn a_line_that_is_being_written_is_no_line_yet() {
    let mut book = Book::finished();
    book.records.truncate(5);
    book.lines.retain(|line| line.0 <= 25);
    let mut text = book.metrics();
    text.truncate(text.len() - 4);
    let books = super::Books::read(&books::job(), &book.raw(), &text).expect("read");
    assert_eq!(books.violations, []);
    assert_eq!(
        (books.steps.committed.len(), books.steps.is_torn),
        (24, true)
    );
}

#[test]
fn lines_that_the_next_start_cuts_off_are_void() {
    let mut book = Book::rewound();
    book.records.pop();
    book.lines = Book::finished().lines;
    book.lines.truncate(30);
    let books = book.read();
    assert_eq!(books.violations, []);
    assert_eq!((books.steps.committed.len(), books.steps.void), (20, 10));
}

#[test]
fn a_generation_goes_on_under_another_coordinator_and_its_last_news_may_come_late() {
    let mut book = Book::finished();
    let taken = book.records[6].clone();
    assert!(matches!(taken.entry, Entry::TermTaken));
    // The second coordinator takes over in the middle of the second generation.
    book.records.truncate(5);
    book.records.push(taken);
    book.reseal();
    book.lines.truncate(38);
    let books = book.read();
    assert_eq!(books.violations, []);
    assert_eq!(books.steps.committed.len(), 38);
    // It had heard of step 30 when it formed the generation; others had done more by then.
    for step in 31..=33 {
        (book.line(step).1, book.line(step).4) = (1, 2);
    }
    assert_eq!(book.read().violations, []);
}

#[test]
fn a_lane_that_is_dealt_twice_or_to_nobody_is_found() {
    for (lanes, words) in [
        (vec![0, 1, 2], "lane 2 is dealt 2 times"),
        (vec![0], "nobody holds lane 1"),
        (vec![0, 1, LANES], "it deals lane 4, and the job has 4"),
        (vec![], "worker-0 holds no lane"),
    ] {
        let mut book = Book::finished();
        book.change(|entry| match entry {
            Entry::GenerationFormed {
                members,
                generation,
                ..
            } if generation.0 == 1 => {
                members[0].lanes.clone_from(&lanes);
            }
            _ => {}
        });
        let violations = book.read().violations;
        found(&violations, "00000000000000000003.json", words);
        assert_eq!(violations.len(), 1, "{violations:#?}");
    }
}

/// What somebody has done to a record.
type Change = fn(&mut Entry);

#[track_caller]
fn found_in_changed(changes: &[(Change, &str)]) {
    for (change, words) in changes {
        let mut book = Book::finished();
        book.change(change);
        found(&book.read().violations, "journal/", words);
    }
}

#[test]
fn checkpoints_and_an_end_that_no_coordinator_decides_are_found() {
    let changes: [(Change, &str); 4] = [
        (
            |entry| {
                if let Entry::RunFinished { step } = entry {
                    *step = 89;
                }
            },
            "finished at step 89, and the job has 90",
        ),
        (
            |entry| {
                if let Entry::CheckpointCommitted { released, .. } = entry {
                    *released = vec![7];
                }
            },
            "lets the checkpoint at step 7 go, which is not there",
        ),
        (
            |entry| match entry {
                Entry::CheckpointCommitted { checkpoint, .. } if checkpoint.step == 60 => {
                    checkpoint.step = 30;
                }
                _ => {}
            },
            "at step 30 behind one at step 40",
        ),
        (
            |entry| match entry {
                Entry::CheckpointCommitted { checkpoint, .. } if checkpoint.step == 40 => {
                    checkpoint.is_final = false;
                }
                _ => {}
            },
            "not the job's course",
        ),
    ];
    found_in_changed(&changes);
}

#[test]
fn generations_that_no_coordinator_forms_are_found() {
    let changes: [(Change, &str); 3] = [
        (
            |entry| match entry {
                Entry::GenerationFormed { generation, .. } if generation.0 == 2 => {
                    generation.0 = 1;
                }
                _ => {}
            },
            "generation 1 is not after 1",
        ),
        (
            |entry| match entry {
                Entry::GenerationFormed { lost, .. } if !lost.is_empty() => {
                    *lost = vec![books::id("worker-9")];
                }
                _ => {}
            },
            "worker-9 has left or was lost, who was not",
        ),
        (
            |entry| match entry {
                Entry::GenerationFormed { members, .. } if members.len() > 1 => {
                    members[1].member = books::id("worker-0");
                }
                _ => {}
            },
            "a member stands in it twice",
        ),
    ];
    found_in_changed(&changes);
}

#[test]
fn a_run_that_went_back_holds_and_what_it_left_behind_does_not() {
    let book = Book::rewound();
    assert_eq!(book.read().violations, []);
    let kept: Vec<u64> = book.read().timeline.kept().map(|kept| kept.step).collect();
    assert_eq!(kept, [20], "that of step 40 is void");
    let mut stale = book.clone();
    stale.line(21).1 = 1;
    found(
        &stale.read().violations,
        "line 21",
        "which a later one replaced at step 20",
    );
    let mut other = book;
    other.change(|entry| {
        if let Entry::RunRewound { dropped, .. } = entry {
            dropped.clear();
        }
    });
    found(
        &other.read().violations,
        "journal/",
        "it goes back to step 20 and drops []",
    );
}

#[test]
fn only_the_last_run_of_a_directory_counts() {
    let book = Book::after_another_job();
    let books = book.read();
    assert_eq!(books.violations, []);
    assert_eq!(books.timeline.generations.len(), 1);
    let mut stale = book;
    stale.line(3).1 = 1;
    found(
        &stale.read().violations,
        "line 3",
        "generation 1, which the journal does not know",
    );
}

#[test]
fn the_last_checkpoint_of_a_finished_run_is_of_the_last_step() {
    let mut book = Book::finished();
    let last = |r: &Record| matches!(&r.entry, Entry::CheckpointCommitted { checkpoint, .. } if checkpoint.step == TOTAL);
    book.records.retain(|record| !last(record));
    book.reseal();
    let violations = book.read().violations;
    found(
        &violations,
        "journal/",
        "the latest checkpoint is of step 70 of 90",
    );
}

#[test]
fn records_that_were_exchanged_are_both_named() {
    let mut raw = Book::finished().raw();
    let (third, fourth) = (raw.records[&3].clone(), raw.records[&4].clone());
    raw.records.insert(3, fourth);
    raw.records.insert(4, third);
    let violations = Book::finished().read_with(&raw).violations;
    found(
        &violations,
        "00000000000000000003.json",
        "inside it has the number 4",
    );
    found(
        &violations,
        "00000000000000000004.json",
        "inside it has the number 3",
    );
    assert_eq!(violations.len(), 2, "{violations:#?}");
}

#[test]
fn a_record_that_was_written_anew_breaks_the_chain() {
    let mut book = Book::finished();
    let Entry::GenerationFormed { members, .. } = &mut book.records[2].entry else {
        panic!("record 3 forms a generation");
    };
    members[0].host = "elsewhere".into();
    book.records[2] = book.records[2].clone().sealed().expect("sealed");
    let violations = book.read().violations;
    found(
        &violations,
        "00000000000000000004.json",
        "does not continue",
    );
    assert_eq!(violations.len(), 1, "{violations:#?}");
}

#[test]
fn a_snapshot_that_says_something_else_is_found() {
    let book = Book::finished();
    let raw = book.raw_with_snapshot(6);
    assert_eq!(book.read_with(&raw).violations, []);
    for (from, to) in [("\"term\":1", "\"term\":9"), ("{", "[")] {
        let mut raw = raw.clone();
        let text = String::from_utf8(raw.snapshots[&6].to_vec()).expect("text");
        raw.snapshots.insert(6, text.replacen(from, to, 1).into());
        let violations = book.read_with(&raw).violations;
        found(
            &violations,
            "snapshot-00000000000000000006.json",
            "does not say",
        );
    }
    let mut raw = raw;
    raw.records.retain(|number, _| *number < 5);
    let violations = book.read_with(&raw).violations;
    found(
        &violations,
        "00000000000000000005.json",
        "records 5 to 6 are missing",
    );
}

#[test]
fn another_job_is_found() {
    let book = Book::finished();
    let mut job = books::job();
    job.seed += 1;
    let books = super::Books::read(&job, &book.raw(), &book.metrics()).expect("read");
    found(&books.violations, "config.resolved.toml", "another job");
}

#[test]
fn lines_under_the_wrong_generation_are_found() {
    let cases: [(u64, u64, &str); 4] = [
        (20, 9, "generation 9, which the journal does not know"),
        (20, 2, "which began after step 30"),
        (35, 1, "of the later generation 2"),
        (35, 3, "which began after step 40"),
    ];
    for (step, generation, words) in cases {
        let mut book = Book::finished();
        book.line(step).1 = generation;
        found(&book.read().violations, "metrics.jsonl, line", words);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_flipped_bit_of_any_record_is_found_there(record in any::<Index>(), byte in any::<Index>(), bit in 0_u8..8) {
        let book = Book::finished();
        let mut raw = book.raw();
        let number = record.index(raw.records.len()) as u64 + 1;
        let mut bytes = raw.records[&number].to_vec();
        let at = byte.index(bytes.len());
        bytes[at] ^= 1 << bit;
        raw.records.insert(number, bytes.into());
        let violations = book.read_with(&raw).violations;
        let place = format!("{number:020}.json");
        prop_assert!(violations.iter().any(|v| v.place.contains(&place)), "{:?}", violations);
    }

    #[test]
    fn a_missing_record_is_named(record in any::<Index>()) {
        let book = Book::finished();
        let mut raw = book.raw();
        let number = record.index(raw.records.len() - 1) as u64 + 1;
        raw.records.remove(&number);
        let violations = book.read_with(&raw).violations;
        let what = format!("record {number} is missing");
        prop_assert!(violations.iter().any(|v| v.what == what), "{:?}", violations);
    }

    #[test]
    fn a_missing_line_is_named(line in any::<Index>()) {
        let mut book = Book::finished();
        let (step, ..) = book.lines.remove(line.index(book.lines.len()));
        let violations = book.read().violations;
        let what = format!("step {step} has no line");
        prop_assert_eq!(violations.len(), 1);
        prop_assert_eq!(&violations[0].what, &what);
    }

    #[test]
    fn a_line_that_stands_twice_is_named(line in any::<Index>(), to in any::<Index>()) {
        let mut book = Book::finished();
        let line = book.lines[line.index(book.lines.len())].clone();
        book.lines.insert(to.index(book.lines.len() + 1), line.clone());
        let violations = book.read().violations;
        let twice = format!("step {} stands there twice", line.0);
        prop_assert!(violations.iter().any(|v| v.what == twice), "{:?}", violations);
    }

    #[test]
    fn lines_that_were_exchanged_are_found(one in any::<Index>(), other in any::<Index>()) {
        let mut book = Book::finished();
        let (one, other) = (one.index(book.lines.len()), other.index(book.lines.len()));
        prop_assume!(one != other);
        book.lines.swap(one, other);
        prop_assert!(!book.read().violations.is_empty());
    }

    #[test]
    fn what_a_line_says_wrongly_is_found(line in any::<Index>(), field in 0..4, by in 1_u64..9) {
        let mut book = Book::finished();
        let at = line.index(book.lines.len());
        let line = &mut book.lines[at];
        match field {
            0 => line.0 += TOTAL + by,
            1 => line.2.push('x'),
            2 => line.3 += by,
            _ => line.4 += by as u32,
        }
        let place = format!("metrics.jsonl, line {}", at + 1);
        let violations = book.read().violations;
        prop_assert!(violations.iter().any(|v| v.place == place), "{:?}", violations);
    }
}
