//! An upload that fails, hangs or is cut skips that checkpoint with an alarm, and training goes on.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mks2_dataset::store;
use mks2_worker::checkpoint::CheckpointStore;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::{Result, RetryConfig};

use crate::workshop::{Workshop, whole};
use injected::{Act, Fault, Injected, failed};

#[path = "../../../dataset/src/store/injected.rs"]
mod injected;

const GOOD: u8 = 0;
const FAILING: u8 = 1;
const HANGING: u8 = 2;

/// How the store is, from now on, and how often it has failed.
#[derive(Debug, Default)]
struct Mood(AtomicU8, AtomicUsize);

impl Mood {
    fn becomes(&self, mood: u8) {
        self.0.store(mood, Ordering::SeqCst);
    }

    /// Waits until it has failed.
    fn fails(&self) {
        let began = Instant::now();
        while self.1.load(Ordering::SeqCst) == 0 {
            assert!(began.elapsed() < LONG, "nothing was tried");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[async_trait::async_trait]
impl Fault for Mood {
    async fn meet(&self, act: Act, _at: &ObjectPath) -> Result<()> {
        while self.0.load(Ordering::SeqCst) == HANGING && act == Act::Change {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match self.0.load(Ordering::SeqCst) {
            FAILING if act == Act::Change => {
                self.1.fetch_add(1, Ordering::SeqCst);
                Err(failed("the store is gone"))
            }
            _ => Ok(()),
        }
    }
}

/// A workshop whose parts go to a store with moods.
fn moody(run: &Path, patience: Duration) -> (Workshop, Arc<Mood>) {
    let (place, root) = store::open(run.to_str().expect("text")).expect("a store");
    let mood = Arc::new(Mood::default());
    let store = CheckpointStore::new(Arc::new(Injected::new(place, Arc::clone(&mood))), root);
    (Workshop::open(run, store.with_patience(patience)), mood)
}

/// What the trainer may be kept from its work by a checkpoint, also where the machine is busy; less
/// than the troubles here last.
const AT_ONCE: Duration = Duration::from_secs(10);
/// Less than a slow upload may take of the trainer's time, once.
const NO_TIME: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

#[test]
fn an_upload_that_fails_is_skipped_with_an_alarm() {
    let run = tempfile::tempdir().expect("a folder");
    let (mut workshop, mood) = moody(run.path(), LONG);
    workshop.save(1, false);
    workshop.saver.settle().expect("saved");
    mood.becomes(FAILING);
    workshop.save(2, false);
    workshop.hears_of_skipped(1);
    assert_eq!(whole(run.path()).expect("one").step, 1);
    mood.becomes(GOOD);
    workshop.save(3, false);
    workshop.saver.settle().expect("saved");
    assert_eq!(whole(run.path()).expect("one").step, 3);
}

#[test]
fn an_upload_that_hangs_is_given_up_with_an_alarm() {
    let run = tempfile::tempdir().expect("a folder");
    // Enough for the good ones.
    let (mut workshop, mood) = moody(run.path(), Duration::from_secs(6));
    workshop.save(1, false);
    workshop.saver.settle().expect("saved");
    mood.becomes(HANGING);
    workshop.save(2, false);
    workshop.hears_of_skipped(1);
    mood.becomes(GOOD);
    workshop.save(3, false);
    workshop.saver.settle().expect("saved");
    assert_eq!(whole(run.path()).expect("one").step, 3);
}

#[test]
fn checkpoints_that_are_due_while_one_hangs_are_skipped() {
    let run = tempfile::tempdir().expect("a folder");
    let (mut workshop, mood) = moody(run.path(), LONG);
    workshop.save(1, false);
    workshop.saver.settle().expect("saved");
    mood.becomes(HANGING);
    assert!(workshop.save(2, false) < AT_ONCE);
    // A slow upload may take a moment of the trainer's time, once.
    assert!(workshop.save(3, false) < AT_ONCE);
    workshop.hears_of_skipped(1);
    // A busy machine takes some now and then.
    let quickest = (4..9).map(|step| workshop.save(step, false)).min();
    assert!(quickest.expect("five") < NO_TIME, "{quickest:?}");
    workshop.hears_of_skipped(6);
    mood.becomes(GOOD);
    workshop.saver.settle().expect("the late one is saved");
    assert_eq!(whole(run.path()).expect("one").step, 2);
    workshop.save(9, false);
    workshop.saver.settle().expect("saved");
    assert_eq!(whole(run.path()).expect("one").step, 9);
    assert_eq!(workshop.skipped(), 6);
}

#[test]
fn an_upload_that_is_cut_is_skipped_with_an_alarm() {
    let run = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let cutter = std::thread::spawn(move || {
        let mut cuts = 0;
        for connection in listener.incoming() {
            if is_over.load(Ordering::SeqCst) {
                break;
            }
            // Dropped in the midst of the request.
            let mut bytes = [0; 2048];
            let read = connection.and_then(|mut connection| connection.read(&mut bytes));
            cuts += usize::from(read.is_ok_and(|read| read > 0));
        }
        cuts
    });
    let retry = RetryConfig {
        max_retries: 1,
        retry_timeout: Duration::from_secs(5),
        ..RetryConfig::default()
    };
    let store = AmazonS3Builder::new()
        .with_endpoint(format!("http://{address}"))
        .with_allow_http(true)
        .with_bucket_name("bucket")
        .with_access_key_id("name")
        .with_secret_access_key("key")
        .with_retry(retry)
        .build()
        .expect("a store");
    let store = CheckpointStore::new(Arc::new(store), ObjectPath::from("run"));
    let mut workshop = Workshop::open(run.path(), store);
    workshop.save(1, false);
    workshop.hears_of_skipped(1);
    workshop.save(2, false);
    workshop.hears_of_skipped(2);
    assert!(whole(run.path()).is_none(), "nothing counts");
    over.store(true, Ordering::SeqCst);
    drop(std::net::TcpStream::connect(address).expect("connected"));
    assert!(cutter.join().expect("ended") >= 2);
}

#[test]
fn the_end_of_a_stage_is_tried_again() {
    let run = tempfile::tempdir().expect("a folder");
    let (mut workshop, mood) = moody(run.path(), LONG);
    mood.becomes(FAILING);
    // Else for as long as it is tried, which is fifteen seconds.
    assert!(workshop.save(1, true) < AT_ONCE);
    mood.fails();
    mood.becomes(GOOD);
    workshop.saver.settle().expect("saved");
    let latest = whole(run.path()).expect("one");
    assert!(latest.step == 1 && latest.is_final);
    assert_eq!(workshop.skipped(), 0);
}
