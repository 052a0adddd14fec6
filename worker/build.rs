//! Finds libtorch and writes its folder into the run path of every binary, test and bench of this
//! package, so that none of them needs `LD_LIBRARY_PATH`. `torch-sys` links; this only says where.
//!
//! libtorch is, in this order: the `torch` of the active Python when `LIBTORCH_USE_PYTORCH` is set,
//! the folder in `LIBTORCH` (`.cargo/config.toml` points it at `.libtorch`, the link that
//! `cargo xtask setup` makes).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `tch` is generated from; another version has other signatures.
const VERSION: &str = "2.11.0";

fn main() {
    for name in [
        "LIBTORCH",
        "LIBTORCH_LIB",
        "LIBTORCH_USE_PYTORCH",
        "VIRTUAL_ENV",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    match libtorch() {
        Ok(lib) => println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display()),
        Err(sentence) => println!("cargo::error={sentence}"),
    }
}

/// The folder of `libtorch_cpu.so`, or one sentence that says what is wrong and how to cure it.
fn libtorch() -> Result<PathBuf, String> {
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return from_python();
    }
    let root = env::var_os("LIBTORCH").map(PathBuf::from).ok_or_else(|| {
        "LIBTORCH is not set: build inside the checkout after `cargo xtask setup`".to_owned()
    })?;
    let version_file = root.join("build-version");
    println!("cargo::rerun-if-changed={}", version_file.display());
    let lib = env::var_os("LIBTORCH_LIB")
        .map_or_else(|| root.clone(), PathBuf::from)
        .join("lib");
    let lib = with_libtorch(&lib)?;
    match fs::read_to_string(&version_file) {
        Ok(version) => check_version(&version, &root)?,
        // A system-wide libtorch has no such file; torch-sys takes it too.
        Err(_) if root.join("include/torch").is_dir() => {}
        Err(error) => {
            return Err(format!(
                "{} is unreadable ({error}): {CURE}",
                version_file.display()
            ));
        }
    }
    Ok(lib)
}

const CURE: &str = "run `cargo xtask setup`, or set LIBTORCH to a libtorch 2.11.0";

fn with_libtorch(lib: &Path) -> Result<PathBuf, String> {
    match fs::canonicalize(lib) {
        Ok(lib) if lib.join("libtorch_cpu.so").is_file() => Ok(lib),
        _ => Err(format!(
            "libtorch {VERSION} is not at {}: {CURE}",
            lib.display()
        )),
    }
}

fn check_version(found: &str, place: &Path) -> Result<(), String> {
    let found = found.trim();
    let release = found.split('+').next().unwrap_or(found);
    if release == VERSION {
        return Ok(());
    }
    Err(format!(
        "libtorch at {} is {found}, not {VERSION}: {CURE}",
        place.display()
    ))
}

/// Asks the interpreter that torch-sys asks: `python` of an active virtual environment, else
/// `python3`.
fn from_python() -> Result<PathBuf, String> {
    const ASK: &str = "import torch, os; print(torch.__version__); \
                       print(os.path.join(os.path.dirname(torch.__file__), 'lib'))";
    const CURE: &str = "activate an environment with torch 2.11.0, or unset LIBTORCH_USE_PYTORCH \
                        and run `cargo xtask setup`";
    let python = if env::var_os("VIRTUAL_ENV").is_some() {
        "python"
    } else {
        "python3"
    };
    let failed = |why: String| format!("LIBTORCH_USE_PYTORCH is set, but {why}: {CURE}");
    let output = Command::new(python)
        .args(["-c", ASK])
        .output()
        .map_err(|error| failed(format!("{python} does not start ({error})")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let (Some(version), Some(lib)) = (lines.next(), lines.next()) else {
        return Err(failed(format!("{python} can not import torch")));
    };
    check_version(version, Path::new(lib))?;
    with_libtorch(Path::new(lib))
}
