//! The conversation with the program that computes; see [`mks2_proto::generate`] and
//! [`mks2_proto::evaluate`].

use std::process::Stdio;

use mks2_proto::env;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Ask, Event};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::train::{cause, spawn, worker_program};

/// Lines that wait for the program to read them.
const AHEAD: usize = 64;

/// Starts the program to do what `verb` says. Call it from the main thread: the program ends with the
/// thread that started it.
///
/// # Errors
/// No program (exit 6).
pub(super) async fn begin(
    verb: &str,
    opening: &impl Serialize,
) -> Result<(Asking, Answers), Failure> {
    let mut command = Command::new(worker_program()?);
    command
        .arg(verb)
        .env(env::CUBLAS_WORKSPACE, env::CUBLAS_WORKSPACE_VALUE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C is for this program to hear.
        .process_group(0)
        .kill_on_drop(true);
    spawn::die_with_the_launcher(&mut command);
    let mut child = command
        .spawn()
        .map_err(|error| Failure::io("the worker program cannot be started", error))?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(gone("its standard input and output are not connected"));
    };
    let (to, lines) = channel(AHEAD);
    tokio::spawn(write(input, lines));
    let asking = Asking { to };
    asking.say(opening).await?;
    let lines = BufReader::new(output).lines();
    Ok((asking, Answers { child, lines }))
}

/// Where things are asked. The conversation is over when all of these are gone.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    to: Sender<Vec<u8>>,
}

impl Asking {
    /// Asks something. Whether the program is there shows in its answers.
    ///
    /// # Errors
    /// What has no JSON.
    pub(crate) async fn ask(&self, what: &Ask) -> Result<(), Failure> {
        self.say(what).await
    }

    async fn say(&self, what: &impl Serialize) -> Result<(), Failure> {
        let json = serde_json::to_vec(what);
        let mut line = json
            .map_err(|error| Failure::internal("what is asked has no JSON", error.to_string()))?;
        line.push(b'\n');
        let _ = self.to.send(line).await;
        Ok(())
    }
}

async fn write(mut input: ChildStdin, mut lines: Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if input.write_all(&line).await.is_err() {
            // How it ended is told by its last line or its exit code.
            return;
        }
    }
}

/// What the program says. It is killed when this goes.
#[derive(Debug)]
pub(crate) struct Answers {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Answers {
    /// The next event; none when the program has answered everything and nothing more is asked.
    ///
    /// # Errors
    /// What the program could not do, or that it is gone.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        match self.said().await? {
            Some(Event::Failed { why }) => Err(why.into()),
            event => Ok(event),
        }
    }

    /// The next line; none when the program has done everything that it was asked.
    ///
    /// # Errors
    /// That the program is gone, or speaks otherwise.
    pub(crate) async fn said<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        let line = self.lines.next_line().await;
        let Some(line) = line.map_err(|error| gone(&error.to_string()))? else {
            let status = self.child.wait().await;
            let status = status.map_err(|error| gone(&error.to_string()))?;
            return match status.success() {
                true => Ok(None),
                false => Err(gone(&cause::ending(status))),
            };
        };
        serde_json::from_str(&line)
            .map(Some)
            .map_err(|error| gone(&error.to_string()))
    }
}

fn gone(why: &str) -> Failure {
    Failure::environment(
        "the program that computes is gone",
        why,
        "look at what it said above; a smaller --batch needs less memory",
    )
}
