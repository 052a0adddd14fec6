//! The fixtures of the parity tests, made by an independent PyTorch implementation; exported models in
//! transformers and PEFT; and an evaluation harness on our server beside its own backend.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fault::{Fault, Outcome};
use crate::{places, python, setup, shell, ui};

const REFERENCE: &str = "worker/tests/reference";
const PICTURES: &str = "dataset/tests/fixtures/pictures";
const PEERS: &str = "xtask/peers";
const FIXTURES: &str = "worker/tests/fixtures";
/// Where models lie in it that transformers has written.
const PRETRAINED: &str = "pretrained";
/// Where stages lie in it that the reference has trained.
const TRAINING: &str = "training";
/// Parameters and operations of whole jobs.
const COUNTS: &str = "proto/tests/fixtures/counts.json";
/// Where captions, answers and choices lie with what others make of them.
const METRICS: &str = "metrics";

/// The interpreter of the reference: `MKS2_PYTHON`, or an environment with its pinned packages.
pub(crate) fn interpreter() -> Outcome<PathBuf> {
    match std::env::var_os("MKS2_PYTHON") {
        Some(own) => Ok(own.into()),
        None => python::environment(&places::root().join(REFERENCE).join("requirements.txt")),
    }
}

/// `cargo xtask fixtures`
pub(crate) fn make_fixtures() -> Outcome {
    let root = places::root();
    make(
        &root.join(FIXTURES),
        &root.join(PICTURES),
        &root.join(COUNTS),
    )
}

fn make(folder: &Path, pictures: &Path, counts: &Path) -> Outcome {
    let python = interpreter()?;
    let targets = [
        ("make_fixtures.py", folder.to_owned()),
        ("make_pretrained.py", folder.join(PRETRAINED)),
        ("make_training.py", folder.join(TRAINING)),
        ("make_metrics.py", folder.join(METRICS)),
        ("make_chats.py", folder.join(PRETRAINED)),
        (
            "make_tokenizers.py",
            folder.join(PRETRAINED).join("tokenizers"),
        ),
        ("make_pictures.py", pictures.to_owned()),
        ("count_models.py", counts.to_owned()),
    ];
    for (script, target) in targets {
        let script = places::root().join(REFERENCE).join(script);
        shell::run(shell::program(&python).arg(script).arg(target))?;
    }
    Ok(())
}

/// `cargo xtask parity`: fixtures made afresh on this machine, and the tests against them.
pub(crate) fn compare() -> Outcome {
    setup::ensure()?;
    let fresh = places::root().join("target/parity-fixtures");
    fs::create_dir_all(&fresh).map_err(|error| Fault::file("make", &fresh, &error))?;
    let counts = fresh.join("counts.json");
    make(&fresh, &fresh.join("pictures"), &counts)?;
    let committed = names(&places::root().join(FIXTURES))?;
    if names(&fresh)? != committed {
        return Err(Fault::new(format!(
            "{FIXTURES} does not hold what the reference writes: run `cargo xtask fixtures`"
        )));
    }
    if read(&counts)? != read(&places::root().join(COUNTS))? {
        return Err(Fault::new(format!(
            "{COUNTS} does not hold what PyTorch counts: run `cargo xtask fixtures`"
        )));
    }
    // Another CPU rounds differently in the last bits, so the fresh fixtures are not compared byte
    // by byte: our model is tested against them as it is against the committed ones.
    let mut tests = shell::cargo(&[
        "test",
        "--workspace",
        "--test",
        "parity",
        "--test",
        "pretrained",
        "--test",
        "pictures",
    ]);
    shell::run(tests.env("MKS2_PARITY_FIXTURES", &fresh))?;
    ui::say(format_args!(
        "{} fixtures made afresh agree",
        committed.len()
    ));
    tools()
}

/// What others have does the same with our models: transformers and PEFT with exported ones, and
/// lm-evaluation-harness through `mks2 serve` as by itself.
fn tools() -> Outcome {
    let peers = places::root().join(PEERS);
    let python = match std::env::var_os("MKS2_PYTHON") {
        Some(own) => own.into(),
        None => python::environment(&peers.join("requirements-tools.txt"))?,
    };
    shell::run(&mut shell::cargo(&["build", "--workspace", "--bins"]))?;
    let program = places::binary("debug", "mks2");
    let mut export = shell::program(&python);
    export
        .arg(peers.join("export.py"))
        .args(program.parent())
        .arg(places::root().join("target/export"));
    shell::run(&mut export)?;
    let model = places::root()
        .join(FIXTURES)
        .join(PRETRAINED)
        .join("base-decoder");
    let mut harness = shell::program(&python);
    harness
        .arg(peers.join("harness.py"))
        .arg(program)
        .arg(model)
        .arg(places::root().join("target/harness"));
    shell::run(&mut harness)
}

fn read(file: &Path) -> Outcome<Vec<u8>> {
    fs::read(file).map_err(|error| Fault::file("read", file, &error))
}

/// All safetensors files in a folder and below it.
fn names(folder: &Path) -> Outcome<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|error| Fault::file("read", folder, &error))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            let inner = names(&entry.path())?;
            found.extend(inner.into_iter().map(|file| format!("{name}/{file}")));
        } else if name.ends_with(".safetensors") {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}
