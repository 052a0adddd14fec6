//! Starting one worker so that it cannot outlive the launcher.
#![allow(unsafe_code)]

use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Starts `program` with `arguments`, and with `variables` over the inherited environment; both of its streams go to
/// the end of `log`. It gets a process group of its own, so that Ctrl-C in the terminal reaches
/// the launcher alone, which then asks the run to stop.
///
/// On Linux the kernel kills the child when the thread that started it ends. Call this from the
/// main thread, which lives as long as the program.
///
/// # Errors
/// Those of the operating system; the log's or the program's is told by [`SpawnError`].
pub(crate) fn start(
    program: &Path,
    arguments: &[String],
    variables: &[(String, String)],
    log: &Path,
) -> Result<Child, SpawnError> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log);
    let file = file.map_err(SpawnError::Log)?;
    let twin = file.try_clone().map_err(SpawnError::Log)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(twin)
        .process_group(0)
        .kill_on_drop(true);
    die_with_the_launcher(&mut command);
    command.spawn().map_err(SpawnError::Program)
}

/// What could not be opened.
#[derive(Debug)]
pub(crate) enum SpawnError {
    /// The log file.
    Log(io::Error),
    /// The program.
    Program(io::Error),
}

/// On Linux the child ends with the thread that starts it.
#[cfg(target_os = "linux")]
pub(crate) fn die_with_the_launcher(command: &mut Command) {
    let launcher = std::process::id();
    // SAFETY: the closure runs in the child between fork and exec. It only makes system calls
    // that are safe there (prctl, getppid) and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The launcher may have ended before the line above took effect.
            if u32::try_from(libc::getppid()).ok() != Some(launcher) {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            Ok(())
        });
    }
}

/// Elsewhere a worker notices the lost coordinator, looks for it a while and ends by itself.
#[cfg(not(target_os = "linux"))]
pub(crate) fn die_with_the_launcher(_command: &mut Command) {}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn signal(pid: u32, signal: i32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: kill has no memory effects; the pid is our own child's, not yet reaped.
        unsafe { libc::kill(pid, signal) };
    }
}
