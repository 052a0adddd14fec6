use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mks2_dataset::pretrained::config::Described;
use mks2_dataset::pretrained::tokens::{self, EndToken, TokenizerFiles};
use mks2_dataset::pretrained::{Folder, base};
use mks2_proto::job::load;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::*;
use crate::model::Bridge;

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
fn who_only_asks_gets_the_same_weights_from_the_files_themselves() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let copy = copied("base-decoder");
    let url = copy.path().to_str().expect("UTF-8");
    let part = runtime.block_on(async {
        let folder = Folder::open(url).expect("a folder");
        let described = base::read(&folder).await.expect("described");
        base::Part::open(&folder, &described, true)
            .await
            .expect("whole")
    });
    let place = (Precision::Bf16, Device::Cpu);
    let asked = weights(&part, place, runtime.handle()).expect("read");
    let (own, _) = weights_with_digest(&part, place, runtime.handle()).expect("read");
    for name in own.names() {
        let (asked, own) = (asked.get(name), own.get(name));
        let (mut asked, own) = (asked.expect("there"), own.expect("there"));
        assert_eq!(asked.kind(), own.kind(), "{name}");
        assert!(asked.equal(&own), "{name}");
        // It is the model's own all the same.
        let _ = asked.fill_(7.0);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux");
    assert!(maps.contains(url), "nothing is mapped");
    let again = weights(&part, place, runtime.handle()).expect("read");
    for name in own.names() {
        let (again, own) = (again.get(name), own.get(name));
        assert!(again.expect("there").equal(&own.expect("there")), "{name}");
    }
}

#[test]
fn texts_become_the_tokens_of_transformers() {
    let found = read(&job(&folder("base-decoder"))).expect("read");
    let encoder = found.encoder.expect("a tokenizer");
    let expected = std::fs::read(folder("base-decoder").join("tokens.json")).expect("there");
    let expected: Vec<Value> = serde_json::from_slice(&expected).expect("JSON");
    assert!(expected.len() > 5);
    assert_eq!(
        encoder.vocab_size(),
        320,
        "rows of the embedding, not entries"
    );
    for case in expected {
        let text = case["text"].as_str().expect("a text");
        let ids = case["ids"].as_array().expect("ids");
        let ids: Vec<i64> = ids.iter().filter_map(Value::as_i64).collect();
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
    let copy = copied("base-decoder");
    let changed = job(copy.path());
    assert_eq!(read(&changed).expect("read").weights_digest, same);
    let json = std::fs::read_to_string(copy.path().join("tokenizer.json")).expect("there");
    std::fs::write(copy.path().join("tokenizer.json"), json.clone() + "\n").expect("written");
    assert_ne!(read(&changed).expect("read").weights_digest, same);
    // Where nothing opens a text, the end token does: that is Qwen2's manner.
    let mut plain: Value = serde_json::from_str(&json).expect("JSON");
    plain["post_processor"] = Value::Null;
    std::fs::write(copy.path().join("tokenizer.json"), plain.to_string()).expect("written");
    let encoder = read(&changed).expect("read").encoder.expect("a tokenizer");
    assert_eq!(encoder.opening(), [encoder.end()]);
    let tokens = encoder.sentence("the fox").expect("encoded");
    assert_eq!(tokens.targets(), tokens.end);
    let without = json.replace("<|end|>", "<|fin|>");
    std::fs::write(copy.path().join("tokenizer.json"), without).expect("written");
    let failure = read(&changed).err().expect("no such token");
    assert!(
        failure.why.contains("no end token '<|end|>'"),
        "{failure:?}"
    );
}

#[test]
fn a_q_former_finds_what_it_finds_in_transformers() {
    let mut job = job(&folder("base-decoder"));
    let url = folder("base-q-former").display().to_string();
    let models = job.stages[0].pretrained.as_mut().expect("models");
    models.q_former = Some(url.clone());
    let without = read(&job).err().expect("another bridge").why;
    assert!(without.contains("kind is \"linear\""), "{without}");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let described = runtime.block_on(async {
        let folder = Folder::open(&url).expect("a folder");
        base::read(&folder).await.expect("described")
    });
    let Described::QFormer(found) = described else {
        panic!("a Q-Former");
    };
    job.model.bridge = found.shape;
    let mut weights = read(&job).expect("read").weights;
    assert!(weights.contains("qformer.layernorm.weight"));
    assert!(!weights.contains("language_projection.weight"));
    // A linear layer that changes nothing.
    job.model.decoder.hidden_size = job.model.bridge.hidden_size;
    let width = i64::from(job.model.bridge.hidden_size);
    let same = Tensor::eye(width, (Kind::Float, Device::Cpu));
    weights.insert_frozen("bridge.weight", &same);
    let nothing = Tensor::zeros([width], (Kind::Float, Device::Cpu));
    weights.insert_frozen("bridge.bias", &nothing);
    let expected = std::fs::read(Path::new(&url).join("expected.safetensors")).expect("there");
    let expected = SafeTensors::deserialize(&expected).expect("whole");
    let get = |name: &str| {
        let view = expected.tensor(name).expect("there");
        let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
        Tensor::from_data_size(view.data(), &shape, Kind::Float)
    };
    let bridge = Bridge::new(&job.model, &weights).expect("a bridge");
    let ours = bridge.forward(&get("input/features")).expect("it fits");
    let right = get("output/queries");
    let error = (ours - &right).abs().max() / right.abs().max();
    assert!(error.double_value(&[]) < 1e-5, "{error:?}");
}

/// A copy of a model, to be changed.
fn copied(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(folder(name)).expect("there") {
        let from = entry.expect("read").path();
        let to = copy.path().join(from.file_name().expect("a name"));
        std::fs::copy(from, to).expect("copied");
    }
    copy
}

#[test]
fn what_a_model_does_not_know_is_left_out_on_demand() {
    let copy = copied("base-decoder");
    let index = copy.path().join("model.safetensors.index.json");
    let json = std::fs::read(&index).expect("an index");
    let mut json: Value = serde_json::from_slice(&json).expect("JSON");
    json["weight_map"]["model.more.weight"] = "more.safetensors".into();
    std::fs::write(&index, json.to_string()).expect("written");
    let more =
        safetensors::tensor::TensorView::new(Dtype::F32, vec![1], &[0; 4]).expect("a tensor");
    let file = copy.path().join("more.safetensors");
    safetensors::serialize_to_file([("model.more.weight", more)], None, &file).expect("written");
    let mut job = job(copy.path());
    let refused = read(&job).err().expect("strict").why;
    assert!(
        refused.contains("1 unexpected: model.more.weight"),
        "{refused}"
    );
    job.stages[0].pretrained.as_mut().expect("models").strict = false;
    let found = read(&job).expect("read");
    assert!(!found.weights.contains("model.more.weight"));
    assert!(found.weights.contains("model.norm.weight"));
}

/// The tokenizer of a folder.
fn files(folder: &Path) -> TokenizerFiles {
    let folder = Folder::open(folder.to_str().expect("UTF-8")).expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(tokens::read(&folder)).expect("read")
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let files = files(&folder("base-decoder"));
    let refused = |rows, texts| {
        let failure = TextEncoder::pretrained(&files, rows, texts).err();
        failure.expect("it does not fit").why
    };
    let why = refused(100, 64);
    assert!(why.contains("has a token"), "{why}");
    assert!(why.ends_with("embedding 100 rows"), "{why}");
    let why = refused(320, 2);
    assert!(why.contains("max_text_tokens is 2"), "{why}");
    TextEncoder::pretrained(&files, 320, 64).expect("it fits");
}

#[test]
fn where_the_tokenizer_names_no_end_token_the_model_does() {
    let copy = copied("base-decoder");
    let named = files(copy.path());
    assert_eq!(named.end, EndToken::Named("<|end|>".into()));
    std::fs::remove_file(copy.path().join("tokenizer_config.json")).expect("removed");
    let path = copy.path().join("config.json");
    let config = std::fs::read(&path).expect("there");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    let tokenizer: Value = serde_json::from_slice(&named.json).expect("JSON");
    let added = tokenizer["added_tokens"].as_array().expect("tokens");
    let end = added.iter().find(|token| token["content"] == "<|end|>");
    let end = end.expect("there")["id"].as_u64().expect("an id");
    let right = TextEncoder::pretrained(&named, 320, 64).expect("it fits");
    for ids in [json!(end), json!([end, 7])] {
        config["eos_token_id"] = ids;
        std::fs::write(&path, config.to_string()).expect("written");
        let numbered = files(copy.path());
        assert_eq!(numbered.end, EndToken::Numbered(end as u32));
        let encoder = TextEncoder::pretrained(&numbered, 320, 64).expect("it fits");
        assert_eq!(encoder.end(), right.end());
    }
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let copy = copied("base-decoder");
    let job = job(copy.path());
    let path = copy.path().join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&path).expect("there");
    let name = {
        let file = SafeTensors::deserialize(&bytes).expect("whole");
        file.names().into_iter().min().expect("a tensor").to_owned()
    };
    let at = {
        let file = SafeTensors::deserialize(&bytes).expect("whole");
        let data = file.tensor(&name).expect("there").data().as_ptr();
        data as usize - bytes.as_ptr() as usize
    };
    // No number in F16 and BF16 alike.
    bytes[at..at + 2].fill(0xff);
    std::fs::write(&path, bytes).expect("written");
    let failure = read(&job).err().expect("refused");
    assert!(failure.why.contains(&name), "{failure}");
    assert!(failure.why.contains("model-00002-of-00003"), "{failure}");
}

#[test]
fn what_reads_the_same_input_is_there_once() {
    let found = read(&job(&folder("base-decoder"))).expect("read");
    let at = |name: &str| {
        let name = format!("model.layers.0.{name}.weight");
        let weight = found.weights.get(&name).expect("there");
        let begin = weight.data_ptr() as usize;
        (begin, begin + weight.numel() * 4)
    };
    assert_eq!(at("self_attn.q_proj").1, at("self_attn.k_proj").0);
    assert_eq!(at("self_attn.k_proj").1, at("self_attn.v_proj").0);
    assert_eq!(at("mlp.gate_proj").1, at("mlp.up_proj").0);
    let shape = job(&folder("base-decoder")).model.decoder;
    let places = || -> BTreeSet<usize> {
        let frozen = found.weights.frozen();
        frozen
            .iter()
            .map(|tensor| tensor.data_ptr() as usize)
            .collect()
    };
    let before = places();
    crate::model::Decoder::new(&shape, 320, &found.weights).expect("a decoder");
    assert_eq!(places(), before, "nothing was copied");
}
