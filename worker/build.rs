//! Finds libtorch, writes its folder into the run path of every binary, test and bench of this package, so
//! that none of them needs `LD_LIBRARY_PATH`, and compiles the one file of C++. `torch-sys` links.
//!
//! libtorch is, in this order: the `torch` of the active Python when `LIBTORCH_USE_PYTORCH` is set,
//! the folder in `LIBTORCH` (`.cargo/config.toml` points it at `.libtorch`, the link that
//! `cargo xtask setup` makes).

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "build/version.rs"]
mod version;

fn main() {
    for name in [
        "LIBTORCH",
        "LIBTORCH_INCLUDE",
        "LIBTORCH_LIB",
        "LIBTORCH_USE_PYTORCH",
        "VIRTUAL_ENV",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    match libtorch() {
        Ok(found) => {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", found.lib.display());
            compile(&found.include);
        }
        Err(sentence) => println!("cargo::error={sentence}"),
    }
}

/// Where libtorch's files are.
struct Libtorch {
    /// `libtorch_cpu.so`
    lib: PathBuf,
    /// `torch/`, `ATen/`, `c10/`
    include: PathBuf,
}

fn compile(include: &Path) {
    const SOURCE: &str = "src/model/onednn.cpp";
    println!("cargo::rerun-if-changed={SOURCE}");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .includes([include, &include.join("torch/csrc/api/include")])
        // As libtorch itself is built.
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .opt_level(2)
        .debug(false)
        // The headers are libtorch's.
        .warnings(false)
        .file(SOURCE)
        .compile("mks2_onednn");
}

/// libtorch, or one sentence that says what is wrong and how to cure it.
fn libtorch() -> Result<Libtorch, String> {
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
    let include = env::var_os("LIBTORCH_INCLUDE").map_or_else(|| root.clone(), PathBuf::from);
    let lib = version::of_folder(&root, &lib).map_err(|wrong| {
        let version = version::VERSION;
        format!("{wrong}: run `cargo xtask setup`, or set LIBTORCH to a libtorch {version}")
    })?;
    Ok(Libtorch {
        lib,
        include: include.join("include"),
    })
}

/// Asks the interpreter that torch-sys asks: `python` of an active virtual environment, else
/// `python3`.
fn from_python() -> Result<Libtorch, String> {
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
    let lib = folder.map_err(|wrong| version::python_refused(&wrong))?;
    Ok(Libtorch {
        include: lib.with_file_name("include"),
        lib,
    })
}
