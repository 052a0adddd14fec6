//! Python: the interpreter of the user, and environments of our own in the per-user cache.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::fault::{Fault, Outcome};
use crate::{places, shell, ui};

/// `python` of an active virtual environment, else `python3`: the choice of torch-sys.
fn interpreter() -> &'static str {
    if std::env::var_os("VIRTUAL_ENV").is_some() {
        "python"
    } else {
        "python3"
    }
}

fn found() -> Outcome<PathBuf> {
    places::which(interpreter()).ok_or_else(|| {
        Fault::environment(
            "Python 3 is not in PATH: install it with pip, on Debian or Ubuntu `sudo apt install \
             python3-pip`",
        )
    })
}

/// An interpreter that has pip.
pub(crate) fn with_pip() -> Outcome<PathBuf> {
    let python = found()?;
    if shell::output(shell::program(&python).args(["-m", "pip", "--version"]))?
        .status
        .success()
    {
        return Ok(python);
    }
    Err(Fault::environment(format!(
        "{} has no pip: install it, on Debian or Ubuntu `sudo apt install python3-pip`",
        python.display()
    )))
}

/// What the user's Python prints when it runs these words; nothing if they fail.
pub(crate) fn answer(words: &str) -> Outcome<String> {
    let output = shell::output(shell::program(found()?).args(["-c", words]))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The interpreter of an environment with exactly the packages of a requirements file. It is made
/// once per content of that file.
pub(crate) fn environment(requirements: &Path) -> Outcome<PathBuf> {
    let pins = fs::read(requirements).map_err(|e| Fault::file("read", requirements, &e))?;
    let digest: String = Sha256::digest(&pins)
        .iter()
        .take(6)
        .map(|b| format!("{b:02x}"))
        .collect();
    let folder = places::cache()?.join(format!("python-{digest}"));
    let python = folder.join("bin/python");
    // Written last: an environment without it was cut short.
    let complete = folder.join("complete");
    if complete.is_file() {
        return Ok(python);
    }
    ui::say(format_args!(
        "making a Python environment at {} (once)",
        folder.display()
    ));
    let mut make = shell::program(with_pip()?);
    shell::run(make.args(["-m", "venv", "--clear"]).arg(&folder)).map_err(|_| {
        Fault::environment(
            "Python cannot make a virtual environment: on Debian or Ubuntu `sudo apt install \
             python3-venv`",
        )
    })?;
    let mut pip = shell::program(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]);
    shell::run(pip.arg("--requirement").arg(requirements))?;
    fs::write(&complete, b"").map_err(|error| Fault::file("write", &complete, &error))?;
    Ok(python)
}
