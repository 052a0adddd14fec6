//! The conversation with the program that computes; see [`mks2_proto::generate`].

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use mks2_proto::env;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Event, Opening, Prompt};

use crate::train::{cause, worker_program};

/// A conversation. The program ends with it.
#[derive(Debug)]
pub(super) struct Talk {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Talk {
    /// Starts the program and asks these prompts.
    ///
    /// # Errors
    /// No program (exit 6).
    pub(super) fn begin(opening: &Opening, prompts: Vec<Prompt>) -> Result<Self, Failure> {
        let mut child = Command::new(worker_program()?)
            .arg("generate")
            .env(env::CUBLAS_WORKSPACE, env::CUBLAS_WORKSPACE_VALUE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::io("the worker program cannot be started", error))?;
        let (Some(mut input), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(broken("its standard input and output are not connected"));
        };
        let mut lines = vec![line(opening)?];
        for prompt in &prompts {
            lines.push(line(prompt)?);
        }
        // It reads as it answers: whoever wrote all before reading could wait for ever.
        std::thread::spawn(move || {
            // How it ended is told by its last line or its exit code.
            let _ = lines.iter().try_for_each(|line| input.write_all(line));
        });
        Ok(Self {
            child,
            answers: BufReader::new(answers),
        })
    }

    /// The next event; none when the program has answered everything.
    ///
    /// # Errors
    /// What the program could not do, or that it is gone.
    pub(super) fn next(&mut self) -> Result<Option<Event>, Failure> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        if read.map_err(|error| broken(&error.to_string()))? == 0 {
            let status = self.child.wait();
            let status = status.map_err(|error| broken(&error.to_string()))?;
            return match status.success() {
                true => Ok(None),
                false => Err(broken(&cause::ending(status))),
            };
        }
        match serde_json::from_str(&line).map_err(|error| broken(&error.to_string()))? {
            Event::Failed { why } => Err(why.into()),
            event => Ok(Some(event)),
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(of: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    let json = serde_json::to_vec(of);
    let mut line =
        json.map_err(|error| Failure::internal("a prompt has no JSON", error.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

fn broken(why: &str) -> Failure {
    Failure::environment(
        "the program that generates is gone",
        why,
        "look at what it said above; a smaller --batch or --max-tokens needs less memory",
    )
}
