//! Signals, by a system call: tests whose pauses count cannot wait until `kill` has started.

use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal; false where there is no such process any more.
pub(crate) fn send(pid: u32, name: &str) -> bool {
    let signal = match name {
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "TERM" => Signal::TERM,
        other => panic!("no signal is called {other}"),
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), signal).is_ok()
}
