use std::path::{Path, PathBuf};

use mks2_proto::job::load;
use safetensors::SafeTensors;

use super::*;

fn folder(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pretrained");
    fixtures.join(name)
}

/// A job that does nothing but read models.
fn job(decoder: &Path) -> Job {
    let text = format!(
        r#"
        name = "read"
        tokenizer.vocab_size = 320
        [model.decoder]
        hidden_size = 32
        intermediate_size = 48
        num_hidden_layers = 2
        num_attention_heads = 4
        num_key_value_heads = 2
        rms_norm_eps = 1e-6
        max_text_tokens = 64
        [model.vision]
        image_size = 32
        patch_size = 8
        hidden_size = 24
        intermediate_size = 48
        num_hidden_layers = 3
        num_attention_heads = 4
        projection_dim = 16
        [model.memory]
        width = 8
        [[stage]]
        name = "base"
        kind = "pretrained"
        pretrained = {{ decoder = {decoder:?}, vision = {:?} }}
        "#,
        folder("base-vision"),
    );
    load::parse(&text).expect("a good job")
}

fn read(job: &Job) -> Result<StageResult, Failure> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let models = job.stages[0].pretrained.clone().expect("models");
    load(job, &models, Device::Cpu, runtime.handle())
}

#[test]
fn every_weight_is_the_one_in_the_files() {
    let found = read(&job(&folder("base-decoder"))).expect("read");
    let mut weights = 0;
    for name in ["base-decoder", "base-vision"] {
        for entry in std::fs::read_dir(folder(name)).expect("there") {
            let path = entry.expect("read").path();
            if path.extension().is_none_or(|end| end != "safetensors") {
                continue;
            }
            let bytes = std::fs::read(&path).expect("there");
            let file = SafeTensors::deserialize(&bytes).expect("whole");
            for (name, view) in file.tensors() {
                let kind = match view.dtype() {
                    Dtype::BF16 => Kind::BFloat16,
                    Dtype::F16 => Kind::Half,
                    other => panic!("{name} is of type {other:?}"),
                };
                let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
                let right = Tensor::from_data_size(view.data(), &shape, kind);
                let ours = found.weights.get(&name).expect("it is there");
                assert_eq!(ours.kind(), Kind::Float);
                assert!(ours.equal(&right.to_kind(Kind::Float)), "{name}");
                weights += 1;
            }
        }
    }
    assert_eq!(found.weights.names().count(), weights);
}

#[test]
fn texts_become_the_tokens_of_transformers() {
    let found = read(&job(&folder("base-decoder"))).expect("read");
    let encoder = found.encoder.expect("a tokenizer");
    let expected = std::fs::read(folder("base-decoder").join("tokens.json")).expect("there");
    let expected: Vec<serde_json::Value> = serde_json::from_slice(&expected).expect("JSON");
    assert!(expected.len() > 5);
    assert_eq!(
        encoder.vocab_size(),
        320,
        "rows of the embedding, not entries"
    );
    for case in expected {
        let text = case["text"].as_str().expect("a text");
        let ids = case["ids"].as_array().expect("ids");
        let ids: Vec<i64> = ids.iter().filter_map(serde_json::Value::as_i64).collect();
        let tokens = encoder.sentence(text).expect("encoded");
        assert_eq!(tokens.ids[..tokens.end], ids, "{text:?}");
        assert_eq!(tokens.ids[tokens.end], encoder.end());
    }
}

#[test]
fn another_tokenizer_is_another_base() {
    let same = read(&job(&folder("base-decoder")))
        .expect("read")
        .weights_digest;
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(folder("base-decoder")).expect("there") {
        let from = entry.expect("read").path();
        let to = copy.path().join(from.file_name().expect("a name"));
        std::fs::copy(from, to).expect("copied");
    }
    let copied = job(copy.path());
    assert_eq!(read(&copied).expect("read").weights_digest, same);
    let json = std::fs::read_to_string(copy.path().join("tokenizer.json")).expect("there");
    std::fs::write(copy.path().join("tokenizer.json"), json.clone() + "\n").expect("written");
    assert_ne!(read(&copied).expect("read").weights_digest, same);
    // Where nothing opens a text, the end token does: that is Qwen2's manner.
    let mut plain: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    plain["post_processor"] = serde_json::Value::Null;
    std::fs::write(copy.path().join("tokenizer.json"), plain.to_string()).expect("written");
    let encoder = read(&copied).expect("read").encoder.expect("a tokenizer");
    assert_eq!(encoder.opening(), [encoder.end()]);
    let tokens = encoder.sentence("the fox").expect("encoded");
    assert_eq!(tokens.targets(), tokens.end);
    let without = json.replace("<|end|>", "<|fin|>");
    std::fs::write(copy.path().join("tokenizer.json"), without).expect("written");
    let failure = read(&copied).err().expect("no such token");
    assert!(
        failure.why.contains("no end token '<|end|>'"),
        "{failure:?}"
    );
    // More tokens than the embedding has rows.
    let most = json.replace("\"<|end|>\": 1", "\"<|end|>\": 320");
    let most = most.replace("\"<|end|>\":1", "\"<|end|>\":320");
    std::fs::write(copy.path().join("tokenizer.json"), most).expect("written");
    assert!(read(&copied).is_err());
}
