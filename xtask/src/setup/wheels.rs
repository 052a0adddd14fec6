//! The three wheels that hold a CPU build of libtorch, pinned by hash.
//!
//! They are the same files for every Python: only headers and libraries are taken out of them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{VERSION, VERSION_FILE};
use crate::fault::{Fault, Outcome};
use crate::shell;

/// A wheel, its hash and what is taken from it.
struct Wheel {
    requirement: &'static str,
    /// How its file name begins.
    prefix: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 3] = [
    Wheel {
        requirement: "torch==2.11.0",
        prefix: "torch-2.11.0-",
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    },
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        prefix: "nvidia_cuda_runtime-13.0.96-",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        prefix: "nvidia_cuda_cupti-13.0.85-",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    },
];

/// The libraries and their sizes in bytes. Everything else that libtorch could load is for GPUs.
const LIBRARIES: [(&str, u64); 5] = [
    ("libtorch_cpu.so", 451_209_129),
    ("libc10.so", 1_498_969),
    ("libgomp.so.1", 254_009),
    ("libcudart.so.13", 704_288),
    ("libcupti.so.13", 4_152_208),
];

/// Takes `torch/include` and the named libraries out of wheels: OUT, then names, then wheels.
const UNPACK: &str = r"
import os, shutil, sys, zipfile
out, names, wheels = sys.argv[1], set(sys.argv[2].split(',')), sys.argv[3:]
for wheel in wheels:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            parts = member.filename.split('/')
            if member.is_dir() or '..' in parts:
                continue
            if parts[:2] == ['torch', 'include']:
                target = os.path.join(out, *parts[1:])
            elif parts[-1] in names and parts[-2:-1] == ['lib']:
                target = os.path.join(out, 'lib', parts[-1])
            else:
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(member) as source, open(target, 'wb') as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
";

/// Whether a folder holds everything, at its full size.
pub(super) fn is_complete(folder: &Path) -> bool {
    let whole = |(name, size): &(&str, u64)| {
        fs::metadata(folder.join("lib").join(name)).is_ok_and(|found| found.len() == *size)
    };
    LIBRARIES.iter().all(whole)
        && folder.join("lib/libtorch.so").exists()
        && folder
            .join("include/torch/csrc/api/include/torch/torch.h")
            .is_file()
        && fs::read_to_string(folder.join(VERSION_FILE)).is_ok_and(|v| v.trim() == VERSION)
}

/// Downloads the wheels into `folder`; one that is there already is not fetched again.
pub(super) fn download(python: &Path, folder: &Path) -> Outcome<Vec<PathBuf>> {
    fs::create_dir_all(folder).map_err(|error| Fault::file("make", folder, &error))?;
    if let Ok(files) = verified(folder) {
        return Ok(files);
    }
    let lines = WHEELS
        .iter()
        .map(|w| format!("{} --hash=sha256:{}\n", w.requirement, w.sha256));
    let pins = folder.join("pins.txt");
    fs::write(&pins, lines.collect::<String>()).map_err(|e| Fault::file("write", &pins, &e))?;
    let mut pip = shell::program(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--no-cache-dir",
    ])
    .args([
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
    ])
    .args(["--platform", "manylinux_2_28_x86_64"])
    .args(["--platform", "manylinux_2_25_x86_64"])
    .args(["--platform", "manylinux_2_17_x86_64"])
    .args(["--disable-pip-version-check", "--requirement"])
    .arg(&pins)
    .arg("--dest")
    .arg(folder)
    .env("PIP_REQUIRE_VIRTUALENV", "false");
    shell::run(&mut pip).map_err(|fault| {
        Fault::environment(format!(
            "libtorch cannot be fetched with pip ({fault}): see pip's words above, check network \
             and proxy, or set LIBTORCH to a libtorch {VERSION}"
        ))
    })?;
    verified(folder)
}

/// The wheels in `folder`, each with the right hash.
fn verified(folder: &Path) -> Outcome<Vec<PathBuf>> {
    WHEELS.iter().map(|wheel| one(folder, wheel)).collect()
}

fn one(folder: &Path, wheel: &Wheel) -> Outcome<PathBuf> {
    let entries = fs::read_dir(folder).map_err(|error| Fault::file("read", folder, &error))?;
    let file = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with(wheel.prefix) && name.ends_with(".whl"))
        })
        .ok_or_else(|| {
            Fault::environment(format!("pip brought no wheel of {}", wheel.requirement))
        })?;
    let mut hash = Sha256::new();
    File::open(&file)
        .and_then(|mut open| io::copy(&mut open, &mut hash))
        .map_err(|error| Fault::file("read", &file, &error))?;
    let found: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found == wheel.sha256 {
        return Ok(file);
    }
    // A file that was cut short must not stand in the way of the next call.
    let _ = fs::remove_file(&file);
    Err(Fault::environment(format!(
        "{} does not have the pinned hash and was removed: run `cargo xtask setup` again",
        file.display()
    )))
}

/// Unpacks headers and libraries into `folder`, in the layout that `tch` expects.
pub(super) fn unpack(python: &Path, wheels: &[PathBuf], folder: &Path) -> Outcome {
    let names: Vec<&str> = LIBRARIES.iter().map(|(name, _)| *name).collect();
    let mut script = shell::program(python);
    script
        .args(["-c", UNPACK])
        .arg(folder)
        .arg(names.join(","))
        .args(wheels);
    shell::read(&mut script).map_err(|fault| {
        Fault::environment(format!(
            "the wheels cannot be unpacked ({fault}): is the disk full?"
        ))
    })?;
    symlink("libtorch_cpu.so", folder.join("lib/libtorch.so"))
        .and_then(|()| fs::write(folder.join(VERSION_FILE), format!("{VERSION}\n")))
        .map_err(|error| Fault::file("write", folder, &error))?;
    if is_complete(folder) {
        return Ok(());
    }
    Err(Fault::environment(format!(
        "{} is not complete after unpacking",
        folder.display()
    )))
}
