//! `mks2 model`, on folders that transformers has written.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Ended, Place};

fn fixture(name: &str) -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let fixtures = crates.expect("a checkout").join("worker/tests/fixtures");
    fixtures.join("pretrained").join(name)
}

fn show(place: &Place, folder: &Path, more: &[&str]) -> Ended {
    let folder = folder.display().to_string();
    place.run(&[&["model", "show", &folder][..], more].concat())
}

/// A copy of a model's folder that a test may damage.
fn copied(place: &Place, name: &str) -> PathBuf {
    let to = place.path(name);
    std::fs::create_dir_all(&to).expect("made");
    for entry in std::fs::read_dir(fixture(name)).expect("a fixture") {
        let entry = entry.expect("read");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
    to
}

#[test]
fn a_language_model_and_a_visual_encoder_are_shown() {
    let place = Place::new();
    let shown = show(&place, &fixture("llama-3"), &[]);
    for words in [
        "llama, language model",
        "2, 24 wide, MLP 40 wide",
        "4 heads of 6, 2 for keys and values",
        "low frequencies stretched 8 times",
        "all tensors of the configuration are there",
    ] {
        assert!(shown.done().out.contains(words), "{words}: {}", shown.out);
    }
    let shown = show(&place, &fixture("clip-vit-b-32"), &["--json"]);
    let shown: Value = serde_json::from_str(&shown.done().out).expect("JSON");
    assert_eq!(shown["family"], "clip");
    assert_eq!(shown["files"], 1);
    assert_eq!(shown["shape"]["patch_size"], 8);
    let parameters = shown["parameters"].as_u64().expect("a number");
    // Those of the text side, in the same file, are not counted.
    assert_eq!(shown["bytes"], parameters * 4);
}

#[test]
fn what_is_not_whole_is_refused_by_name() {
    let place = Place::new();
    let folder = copied(&place, "qwen2.5");
    let config = folder.join("config.json");
    let text = std::fs::read_to_string(&config).expect("read");
    let more = text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert_ne!(text, more);
    std::fs::write(&config, more).expect("written");
    let missing = "model.layers.2.input_layernorm.weight";
    show(&place, &folder, &[]).refused(8, &["12 missing", missing]);
    std::fs::write(&config, text.replace("\"qwen2\"", "\"llama\"")).expect("written");
    let unexpected = "model.layers.0.self_attn.k_proj.bias";
    show(&place, &folder, &[]).refused(8, &["6 unexpected", unexpected]);
    // On demand it is left out, and told.
    let lenient = show(&place, &folder, &["--no-strict"]);
    assert!(lenient.done().err.contains(unexpected), "{}", lenient.err);
    std::fs::write(&config, text.replace("\"qwen2\"", "\"mamba\"")).expect("written");
    show(&place, &folder, &[]).refused(8, &["'mamba'", "llama, mistral, qwen2"]);
}

#[test]
fn what_is_no_model_is_refused_with_what_to_do() {
    let place = Place::new();
    place.write("empty/README.md", "no model");
    show(&place, &place.path("empty"), &[]).refused(8, &["config.json", "huggingface-cli"]);
    let folder = copied(&place, "mistral");
    std::fs::rename(
        folder.join("model.safetensors"),
        folder.join("pytorch_model.bin"),
    )
    .expect("renamed");
    show(&place, &folder, &[]).refused(8, &["is a pickle", "save_pretrained"]);
}
