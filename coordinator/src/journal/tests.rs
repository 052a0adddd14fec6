//! The journal against stores that race, fail and answer late, and against tampering.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use futures::stream::BoxStream;
use mks2_proto::ids::{Generation, RunId};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory,
};

use super::*;

/// A store that fails or loses its answer a number of times.
#[derive(Debug)]
struct Unreliable {
    inner: InMemory,
    refusals: AtomicU32,
    lost_answers: AtomicU32,
}

impl Unreliable {
    fn new(refusals: u32, lost_answers: u32) -> Arc<Self> {
        let inner = InMemory::new();
        Arc::new(Self {
            inner,
            refusals: refusals.into(),
            lost_answers: lost_answers.into(),
        })
    }
}

fn count_down(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
        .is_ok()
}

fn trouble() -> object_store::Error {
    let silence = std::io::Error::from(std::io::ErrorKind::TimedOut);
    object_store::Error::Generic {
        store: "unreliable",
        source: Box::new(HttpError::new(HttpErrorKind::Timeout, silence)),
    }
}

impl fmt::Display for Unreliable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unreliable")
    }
}

#[tonic::async_trait]
impl ObjectStore for Unreliable {
    async fn put_opts(&self, at: &Path, data: PutPayload, how: PutOptions) -> Result<PutResult> {
        if count_down(&self.refusals) {
            return Err(trouble());
        }
        let result = self.inner.put_opts(at, data, how).await;
        if count_down(&self.lost_answers) {
            Err(trouble())
        } else {
            result
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(at, how).await
    }

    fn delete_stream(
        &self,
        places: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(places)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, how).await
    }
}

fn memory() -> Place {
    Place {
        store: Arc::new(InMemory::new()),
        root: Path::from("run"),
    }
}

async fn office(place: &Place, writer: u64) -> Journal {
    let replayed = replay(place.clone()).await.expect("a whole journal");
    replayed
        .take_term(Incarnation(writer))
        .await
        .expect("the term")
}

fn created() -> Entry {
    Entry::RunCreated {
        run_id: RunId::new("run-1").expect("good"),
        job_name: "job".into(),
        job_digest: "d".into(),
        corpora: std::collections::BTreeMap::new(),
        program_version: "0".into(),
    }
}

fn generation(number: u64) -> Entry {
    Entry::GenerationFormed {
        generation: Generation(number),
        members: Vec::new(),
        after_step: 0,
        lost: Vec::new(),
        left: Vec::new(),
        joined: Vec::new(),
    }
}

#[tokio::test]
async fn what_was_written_is_what_is_replayed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, root) = store::open(folder.path().to_str().expect("text")).expect("a local store");
    for place in [memory(), Place { store, root }] {
        let mut journal = office(&place, 1).await;
        journal.append(created()).await.expect("written");
        journal.append(generation(1)).await.expect("written");
        let replayed = replay(place.clone()).await.expect("whole");
        assert_eq!(replayed.number, 3);
        assert_eq!(&replayed.history, journal.history());
        assert_eq!(office(&place, 2).await.term(), Term(2));
    }
}

#[tokio::test]
async fn a_finished_run_stays_finished_until_somebody_works_in_it() {
    let place = memory();
    let mut journal = office(&place, 1).await;
    for entry in [created(), generation(1), Entry::RunFinished { step: 7 }] {
        journal.append(entry).await.expect("written");
    }
    for writer in 2..5 {
        let journal = office(&place, writer).await;
        assert_eq!(journal.history().ending, Some(Ending::Finished));
    }
    let mut journal = office(&place, 5).await;
    journal.append(generation(2)).await.expect("written");
    assert_eq!(journal.history().ending, None);
}

#[tokio::test]
async fn a_new_term_fences_the_old_one() {
    let place = memory();
    let mut old = office(&place, 1).await;
    old.append(created()).await.expect("written");
    let mut new = office(&place, 2).await;
    let fenced = old.append(generation(1)).await.expect_err("fenced");
    assert!(
        matches!(
            fenced,
            JournalError::Fenced {
                number: 3,
                term: Term(2)
            }
        ),
        "{fenced}"
    );
    new.append(generation(1))
        .await
        .expect("the new one goes on");
    assert_eq!(
        Failure::from(fenced).exit,
        mks2_proto::failure::ExitCode::RunFailed
    );
}

#[tokio::test]
async fn of_two_that_race_exactly_one_writes_each_number() {
    let place = memory();
    office(&place, 0)
        .await
        .append(created())
        .await
        .expect("written");
    for round in 0..50 {
        let before = replay(place.clone()).await.expect("whole");
        let number = before.number;
        let race = (1..=8).map(|writer| before.clone().take_term(Incarnation(round * 8 + writer)));
        let won = futures::future::join_all(race).await;
        assert_eq!(won.iter().filter(|result| result.is_ok()).count(), 1);
        let after = replay(place.clone()).await.expect("whole");
        assert_eq!(
            (after.number, after.history.term.0),
            (number + 1, before.history.term.0 + 1)
        );
    }
}

#[tokio::test]
async fn a_store_that_fails_for_a_while_is_tried_again() {
    let place = Place {
        store: Unreliable::new(3, 0),
        root: Path::from("run"),
    };
    let mut journal = office(&place, 1).await;
    journal.append(created()).await.expect("written");
    assert_eq!(replay(place).await.expect("whole").number, 2);
}

#[tokio::test]
async fn a_lost_answer_is_not_taken_for_a_rival() {
    let place = Place {
        store: Unreliable::new(0, 2),
        root: Path::from("run"),
    };
    let mut journal = office(&place, 1).await;
    journal.append(created()).await.expect("written");
    assert_eq!(replay(place).await.expect("whole").number, 2);
}

#[tokio::test]
async fn a_store_that_stays_broken_is_said() {
    let place = Place {
        store: Unreliable::new(1000, 0),
        root: Path::from("run"),
    };
    let replayed = replay(place).await.expect("empty");
    let error = replayed
        .take_term(Incarnation(1))
        .await
        .expect_err("broken");
    assert!(matches!(error, JournalError::Store(_)), "{error}");
}

#[tokio::test]
async fn while_members_work_a_silent_store_is_waited_for() {
    let store = Unreliable::new(0, 0);
    let place = Place {
        store: store.clone(),
        root: Path::from("run"),
    };
    let mut journal = office(&place, 1).await;
    journal.be_patient();
    store.refusals.store(ATTEMPTS + 1, Ordering::SeqCst);
    journal.append(created()).await.expect("written");
    assert_eq!(store.refusals.load(Ordering::SeqCst), 0);
    assert_eq!(replay(place).await.expect("whole").number, 2);
}

#[tokio::test]
async fn a_gap_and_a_change_are_found() {
    let place = memory();
    let mut journal = office(&place, 1).await;
    for number in 1..6 {
        journal.append(generation(number)).await.expect("written");
    }
    let path = place.record(3);
    let bytes = store::get(&*place.store, &path).await.expect("there");
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    let changed = text.replace("\"generation\":2", "\"generation\":7");
    assert_ne!(changed, text);
    place
        .store
        .put(&path, changed.into())
        .await
        .expect("written");
    let error = replay(place.clone()).await.expect_err("changed");
    assert!(
        matches!(error, JournalError::Tampered { number: 3, .. }),
        "{error}"
    );
    place.store.delete(&path).await.expect("deleted");
    let error = replay(place).await.expect_err("a gap");
    assert!(matches!(error, JournalError::Gap { number: 3 }), "{error}");
}

#[tokio::test]
async fn a_snapshot_says_what_the_records_say_and_a_damaged_one_is_left_aside() {
    let place = memory();
    let mut journal = office(&place, 1).await;
    for number in 1..200 {
        journal.append(generation(number)).await.expect("written");
    }
    let whole = replay(place.clone()).await.expect("whole");
    assert_eq!(&whole.history, journal.history());
    let path = place.snapshot(192);
    place
        .store
        .put(&path, "{}".into())
        .await
        .expect("there is a snapshot to replace");
    let again = replay(place.clone()).await.expect("whole");
    assert_eq!((again.history, again.last), (whole.history, whole.last));
    // Records that a snapshot covers are no longer needed.
    place.store.delete(&place.record(5)).await.expect("deleted");
    assert_eq!(replay(place).await.expect("whole").number, 200);
}
