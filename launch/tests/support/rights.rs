//! A folder that may not be written in, and a user whom that binds.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A user without rights of its own, on every Linux.
const NOBODY: u32 = 65534;

/// `mks2` beside the folder `locked`, which is made in `folder` and may be read, not written.
///
/// Permission bits do not bind root. Root therefore starts a copy of the program as somebody else:
/// where it was built may be closed to other users, and `folder` is opened to them.
pub(crate) fn mks2_beside_locked(folder: &Path) -> Command {
    let locked = folder.join("locked");
    fs::create_dir_all(&locked).expect("made");
    fs::set_permissions(&locked, Permissions::from_mode(0o555)).expect("set");
    let program = Path::new(env!("CARGO_BIN_EXE_mks2"));
    if fs::metadata(folder).expect("there").uid() != 0 {
        return Command::new(program);
    }
    let copy = folder.join("mks2");
    // By another process: a file that this one has open for writing could not be executed.
    done(Command::new("cp").args([program, &copy]));
    done(Command::new("chmod").args(["-R", "a+rX"]).arg(folder));
    let mut command = Command::new(copy);
    command.uid(NOBODY).gid(NOBODY);
    command
}

fn done(command: &mut Command) {
    let status = command.status().expect("it runs");
    assert!(status.success(), "{command:?}: {status}");
}
