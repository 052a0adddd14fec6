//! The coordinator as a process: killed, started again, and asked to end.

#[path = "support/members.rs"]
mod support;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mks2_coordinator::contact::Contact;
use mks2_proto::v1::{StopRequested, directive, report::Kind};
use support::{Member, PATIENCE, TOKEN, commit, target_at};

struct Process {
    child: Child,
    endpoint: String,
}

impl Process {
    /// One that waits for the members of its predecessor as long as a test waits for anything.
    fn start(run: &Path) -> Self {
        Self::start_after(run, PATIENCE)
    }

    fn start_after(run: &Path, reunion: Duration) -> Self {
        let mut child = Self::command(run)
            .args(["--reunion", &reunion.as_secs().to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let line: serde_json::Value = serde_json::from_str(&line).expect("json");
        Self {
            child,
            endpoint: line["endpoint"].as_str().expect("text").to_owned(),
        }
    }

    fn command(run: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mks2-coordinator"));
        command
            .args([
                "--job",
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/job.toml"),
            ])
            .args(["--workers", "1", "--run"])
            .arg(run)
            .env("MKS2_TOKEN", TOKEN);
        command
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .expect("kill")
                .success()
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test]
async fn killed_and_started_again_it_goes_on_under_the_next_term() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = Process::start(folder.path());
    let mut member = Member::join(&target_at(&first.endpoint), 0).await;
    assert_eq!(
        (member.welcome.term, member.generation().await.number),
        (1, 1)
    );
    member.keep_beating();
    member.committed_up_to(3).await;
    commit(&mut member, 3, "look", false)
        .await
        .expect("committed");
    member.committed(4).await;
    measured(folder.path(), 4).await;
    first.child.kill().expect("killed");
    first.child.wait().expect("reaped");

    // The member is back: its generation goes on under the next term.
    let mut second = Process::start(folder.path());
    let mut member = Member::join(&target_at(&second.endpoint), 0).await;
    assert_eq!(
        (member.welcome.term, member.generation().await.number),
        (2, 1)
    );
    member.keep_beating();
    member.committed(4).await;
    member.committed(5).await;
    measured(folder.path(), 5).await;
    second.child.kill().expect("killed");
    second.child.wait().expect("reaped");
    drop(member);

    // Nobody is back: new members start from the checkpoint, in the next generation.
    let mut third = Process::start_after(folder.path(), Duration::from_secs(1));
    let mut member = Member::join_as(&target_at(&third.endpoint), 0, 8).await;
    assert_eq!(
        (member.welcome.term, member.generation().await.number),
        (3, 2)
    );
    member.keep_beating();
    assert_eq!(
        member.welcome.resume_from.as_ref().map(|from| from.step),
        Some(3)
    );
    third.terminate();
    let stop = member.next().await;
    assert!(
        matches!(stop, Some(directive::Kind::Stop(StopRequested { .. }))),
        "{stop:?}"
    );
    member
        .send(Kind::Finished(mks2_proto::v1::Finished { complete: false }))
        .await;
    member.leave().await;
    assert_eq!(third.child.wait().expect("ended").code(), Some(130));
}

/// Waits until the metrics have these steps, each once.
async fn measured(run: &Path, steps: u64) {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        let step = |line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
        let there: Vec<_> = text.lines().filter_map(step).collect();
        if there == (1..=steps).collect::<Vec<_>>() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{there:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn it_is_found_by_its_local_run_directory_and_is_alone_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = Process::start(folder.path());
    let contact = Contact::read(folder.path()).expect("published");
    assert_eq!(contact.endpoint, first.endpoint);
    assert_eq!(
        (contact.token.as_str(), contact.pid),
        (TOKEN, first.child.id())
    );
    let second = Process::command(folder.path()).output().expect("runs");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(6), "{said}");
    let owner = format!("process {}", first.child.id());
    assert!(said.contains(&owner), "{said}");
    first.terminate();
    assert_eq!(first.child.wait().expect("ended").code(), Some(130));
    assert_eq!(Contact::read(folder.path()), None);
}
