//! Servers of object stores for the tests: moto speaks S3, Azurite speaks Azure Blob Storage. Both
//! are installed once into the per-user cache, in exact versions.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fault::{Fault, Outcome};
use crate::{places, python, shell, ui};

/// The npm package of Azurite, in the last version that runs on Node.js 18.
const AZURITE: &str = "azurite@3.35.0";

/// What the tests are told by: a variable for each server's program.
pub(crate) fn variables() -> Outcome<[(&'static str, PathBuf); 2]> {
    Ok([
        ("MKS2_TEST_S3_SERVER", moto()?),
        ("MKS2_TEST_AZURE_SERVER", azurite()?),
    ])
}

fn moto() -> Outcome<PathBuf> {
    let requirements = places::root().join("xtask/servers/requirements.txt");
    let python = python::environment(&requirements)?;
    Ok(python.with_file_name("moto_server"))
}

fn azurite() -> Outcome<PathBuf> {
    let folder = places::cache()?.join(AZURITE.replace('@', "-"));
    let program = folder.join("node_modules/.bin/azurite-blob");
    // Written last: a folder without it was cut short.
    let complete = folder.join("complete");
    if complete.is_file() {
        return Ok(program);
    }
    let npm = places::which("npm").ok_or_else(|| {
        Fault::environment(
            "npm is not in PATH, and Azurite is not installed without it: install Node.js, on \
             Debian or Ubuntu `sudo apt install npm`",
        )
    })?;
    let at = folder.display();
    ui::say(format_args!("installing {AZURITE} at {at} (once)"));
    clear(&folder)?;
    fs::create_dir_all(&folder).map_err(|error| Fault::file("make", &folder, &error))?;
    let mut install = shell::program(npm);
    install.arg("install").arg("--prefix").arg(&folder);
    // Nothing of it needs a script at its installation.
    install.args(["--no-audit", "--no-fund", "--ignore-scripts", AZURITE]);
    shell::run(&mut install)?;
    fs::write(&complete, b"").map_err(|error| Fault::file("write", &complete, &error))?;
    Ok(program)
}

fn clear(folder: &Path) -> Outcome {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::file("remove", folder, &error))
        }
        _ => Ok(()),
    }
}
