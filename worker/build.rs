//! Finds libtorch and writes its folder into the run path of every binary, test and bench of this
//! package, so that none of them needs `LD_LIBRARY_PATH`. `torch-sys` links; this only says where.
//!
//! libtorch is, in this order: the `torch` of the active Python when `LIBTORCH_USE_PYTORCH` is set,
//! the folder in `LIBTORCH` (`.cargo/config.toml` points it at `.libtorch`, the link that
//! `cargo xtask setup` makes).

use std::env;
use std::path::PathBuf;
use std::process::Command;

#[path = "build/version.rs"]
mod version;

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
    let version_file = root.join(version::VERSION_FILE);
    println!("cargo::rerun-if-changed={}", version_file.display());
    let lib = env::var_os("LIBTORCH_LIB")
        .map_or_else(|| root.clone(), PathBuf::from)
        .join("lib");
    version::of_folder(&root, &lib).map_err(|wrong| {
        let version = version::VERSION;
        format!("{wrong}: run `cargo xtask setup`, or set LIBTORCH to a libtorch {version}")
    })
}

/// Asks the interpreter that torch-sys asks: `python` of an active virtual environment, else
/// `python3`.
fn from_python() -> Result<PathBuf, String> {
    let python = if env::var_os("VIRTUAL_ENV").is_some() {
        "python"
    } else {
        "python3"
    };
    let output = Command::new(python)
        .args(["-c", version::ASK_PYTHON])
        .output();
    let folder = match output {
        Ok(output) => version::of_python(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => Err(format!("{python} does not start ({error})")),
    };
    folder.map_err(|wrong| version::python_refused(&wrong))
}
