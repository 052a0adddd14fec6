//! `cargo xtask gpu-package`: a folder that checks mks2 on a GPU machine with PyTorch 2.11, where
//! there is neither Rust nor a network.

use std::fs;
use std::path::Path;

use crate::fault::{Fault, Outcome};
use crate::ui::{self, Stages};
use crate::{demo, places, setup, shell};

const PACKAGE: &str = "dist/mks2-gpu";
/// What the folder may weigh.
const LIMIT_BYTES: u64 = 64 << 20;

pub(crate) fn run() -> Outcome {
    let mut stages = Stages::default();
    stages.run("set-up", setup::run)?;
    stages.run("release build", demo::build)?;
    stages.run("package", fill)?;
    stages.table();
    let folder = places::root().join(PACKAGE);
    let bytes = size(&folder)?;
    if bytes > LIMIT_BYTES {
        return Err(Fault::new(format!(
            "{PACKAGE} weighs {} MiB, {} are the limit",
            bytes >> 20,
            LIMIT_BYTES >> 20
        )));
    }
    ui::say(format_args!(
        "{PACKAGE}: {} MiB; copy it to the machine and run ./check.sh",
        bytes >> 20
    ));
    Ok(())
}

/// What goes into the folder: a file or folder of the checkout, and its place in the package.
fn contents() -> [(std::path::PathBuf, &'static str); 6] {
    let root = places::root();
    [
        (places::binary("release", "mks2"), "bin/mks2"),
        (places::binary("release", "mks2-worker"), "bin/mks2-worker"),
        (root.join("examples/emoji/corpus"), "corpus"),
        (root.join("examples/emoji/quick.toml"), "job.toml"),
        (root.join("xtask/gpu/check.sh"), "check.sh"),
        (root.join("xtask/gpu/README.md"), "README.md"),
    ]
}

fn fill() -> Outcome {
    let folder = places::root().join(PACKAGE);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Fault::file("remove", &folder, &error));
        }
        _ => {}
    }
    for (from, to) in contents() {
        copy(&from, &folder.join(to))?;
    }
    for binary in ["bin/mks2", "bin/mks2-worker"] {
        let binary = folder.join(binary);
        // The release profile strips already; what a user's profile left is taken off here.
        shell::run(shell::program("strip").arg("--strip-all").arg(&binary))?;
        // A third of the size: the folder has to go through narrow doors.
        shell::run(
            shell::program("gzip")
                .args(["--best", "--force"])
                .arg(&binary),
        )?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Outcome {
    let fault = |error| Fault::file("copy", from, &error);
    if from.is_dir() {
        for entry in fs::read_dir(from).map_err(fault)?.flatten() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(from, to))
        .map_err(fault)?;
    Ok(())
}

fn size(path: &Path) -> Outcome<u64> {
    let fault = |error| Fault::file("read", path, &error);
    if !path.is_dir() {
        return Ok(fs::metadata(path).map_err(fault)?.len());
    }
    fs::read_dir(path)
        .map_err(fault)?
        .flatten()
        .map(|entry| size(&entry.path()))
        .sum()
}
