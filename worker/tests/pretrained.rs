//! Models in the folders that transformers writes: found, checked and read from their files, they
//! compute what transformers does, in fp32 and in bf16.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its fixture has failed"
)]

#[path = "pretrained/tokenizers.rs"]
mod tokenizers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mks2_dataset::pretrained::config::{self, Described, Language};
use mks2_dataset::pretrained::tensors::Tensors;
use mks2_dataset::pretrained::{Folder, extras};
use mks2_proto::job::{self, Precision};
use mks2_proto::params::{self, ParamSpec};
use mks2_worker::model::{Cache, Decoder, Pass, SecondHalves, Vision, Wanted, Weights, kind_of};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Types of weights, what the outputs of transformers are called, and the largest relative error per
/// tensor: `max |a - b| / max |b|` in fp32, `|a - b| / |b|` in bf16.
const PRECISIONS: [(Precision, &str, f64); 2] = [
    (Precision::Fp32, "output", 1e-5),
    (Precision::Bf16, "output_bf16", 1e-2),
];

fn folders() -> PathBuf {
    // `cargo xtask parity` makes them afresh and says where.
    std::env::var_os("MKS2_PARITY_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pretrained"),
        |fresh| Path::new(&fresh).join("pretrained"),
    )
}

/// A model from its folder, and what is expected of it.
struct Case {
    described: Described,
    weights: Weights,
    expected: Vec<u8>,
}

impl Case {
    fn load(name: &str) -> Self {
        let path = folders().join(name);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (described, weights) = runtime.block_on(async {
            let folder = Folder::open(&path.display().to_string()).unwrap();
            let json = folder.config().await.unwrap();
            let described = config::read(&json, "config.json").unwrap();
            let specs = specs_of(&described);
            let tensors = Tensors::open(&folder).await.unwrap();
            let is_extra = |tensor: &str| extras::is_extra(&described, tensor);
            tensors.check(&specs, is_extra).unwrap();
            let mut weights = Weights::new();
            for spec in &specs {
                let place = tensors.place(&spec.name).unwrap();
                let mut bytes = vec![0; (place.range.end - place.range.start) as usize];
                tensors.read(place, &mut bytes).await.unwrap();
                assert_eq!(place.dtype, Dtype::F32);
                let shape: Vec<i64> = place.shape.iter().map(|size| *size as i64).collect();
                let tensor = Tensor::from_data_size(&bytes, &shape, Kind::Float);
                weights.insert_frozen(&spec.name, &tensor);
            }
            (described, weights)
        });
        Self {
            described,
            weights,
            expected: std::fs::read(path.join("expected.safetensors")).unwrap(),
        }
    }

    fn get(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.expected).unwrap();
        let view = file.tensor(name).unwrap();
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            _ => Kind::Int64,
        };
        let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
        Tensor::from_data_size(view.data(), &shape, kind)
    }

    /// The weights as a model reads them that computes in this.
    fn computing_in(&self, precision: Precision) -> Weights {
        self.weights
            .clone()
            .computing_in((precision, tch::Device::Cpu))
    }

    #[track_caller]
    fn agrees(
        &self,
        (precision, group, tolerance): (Precision, &str, f64),
        name: &str,
        ours: &Tensor,
    ) {
        let theirs = self.get(&format!("{group}/{name}"));
        let kind = match name {
            "logits" => Kind::Float,
            _ => kind_of(precision),
        };
        assert_eq!((ours.kind(), ours.size()), (kind, theirs.size()), "{name}");
        let size = |x: &Tensor| match precision {
            Precision::Fp32 => x.abs().max().double_value(&[]),
            // Single values of two implementations in bf16 are some units of its last place apart.
            Precision::Bf16 => x.norm().double_value(&[]),
        };
        let error = size(&(ours.to_kind(Kind::Float) - &theirs)) / size(&theirs);
        assert!(error < tolerance, "{name} in {precision:?}: {error:e}");
    }
}

fn specs_of(described: &Described) -> Vec<ParamSpec> {
    match described {
        Described::Decoder(language) => params::decoder(&language.shape, language.vocab_size),
        Described::Vision(vision) => params::vision(vision),
        Described::QFormer(found) => params::q_former(&found.shape, found.features),
        Described::Mks2(model) => model.specs(),
    }
}

/// Logits, and the states behind each block.
#[track_caller]
fn speaks_alike(name: &str) {
    let case = Case::load(name);
    let Described::Decoder(Language {
        shape, vocab_size, ..
    }) = &case.described
    else {
        panic!("{name} is a language model");
    };
    let inner: Vec<u32> = (1..shape.num_hidden_layers).collect();
    for precision in PRECISIONS {
        let decoder = Decoder::new(shape, *vocab_size, &case.computing_in(precision.0)).unwrap();
        let h_btd = decoder.embed(&case.get("input/ids")).unwrap();
        let pass = Pass::new(SecondHalves::Mlp).after_blocks(&inner);
        let states = decoder.forward(&h_btd, &pass).unwrap();
        for (block, state) in &states.after_blocks {
            case.agrees(precision, &format!("block.{block}"), state);
        }
        // Transformers gives the last state behind the norm.
        let last = format!("block.{}", shape.num_hidden_layers);
        case.agrees(precision, &last, &states.last_bnd);
        case.agrees(precision, "logits", &decoder.logits(&states.last_bnd));
    }
}

#[track_caller]
fn sees_alike(name: &str) -> job::Vision {
    let case = Case::load(name);
    let Described::Vision(shape) = &case.described else {
        panic!("{name} is a visual encoder");
    };
    for precision in PRECISIONS {
        let vision = Vision::new(shape, &case.computing_in(precision.0)).unwrap();
        let seen = vision.forward(&case.get("input/pixels")).unwrap();
        case.agrees(precision, "global", &seen.global_be);
        case.agrees(precision, "patches", &seen.patches_bpv);
    }
    shape.clone()
}

#[test]
fn llama_2_agrees() {
    speaks_alike("llama-2");
    speaks_alike("llama-odd-heads");
}

#[test]
fn llama_3_agrees_with_scaled_positions_in_many_files_and_with_a_tied_head() {
    speaks_alike("llama-3");
    speaks_alike("llama-3-tied");
    speaks_alike("llama-stretched");
}

#[test]
fn mistral_agrees_with_a_window_and_with_heads_of_a_width_of_their_own() {
    speaks_alike("mistral");
    speaks_alike("mistral-wide-heads");
}

#[test]
fn qwen2_agrees_with_biases() {
    speaks_alike("qwen2");
    speaks_alike("qwen2.5");
}

#[test]
fn visual_encoders_agree_alone_and_within_clip() {
    sees_alike("clip-vit-b-32");
    sees_alike("clip-vit-l-14");
    sees_alike("clip-vit-l-14-336");
    let big = sees_alike("clip-vit-bigg-14");
    assert_eq!(big.hidden_act, job::VisionActivation::Gelu);
}

/// Reads prompts, filled up behind their ends; gives the states of these.
fn read(decoder: &Decoder, ids: &[Vec<i64>], cache: &mut Cache) -> Tensor {
    let lengths: Vec<i64> = ids.iter().map(|ids| ids.len() as i64).collect();
    let longest = *lengths.iter().max().unwrap();
    let padded = ids.iter().map(|ids| {
        let missing = longest - ids.len() as i64;
        Tensor::from_slice(ids).constant_pad_nd([0, missing])
    });
    let ids_bt = Tensor::stack(&padded.collect::<Vec<_>>(), 0);
    let h_btd = decoder.embed(&ids_bt).unwrap();
    let wanted = (SecondHalves::Mlp, Wanted::Last);
    decoder.read(&h_btd, &lengths, wanted, cache).unwrap()
}

/// What a model generates from prompts of unequal length, side by side; as answers end, others take
/// their place.
#[track_caller]
fn goes_on_alike(name: &str, prompts: &[Value]) -> usize {
    let case = Case::load(name);
    let Described::Decoder(language) = &case.described else {
        panic!("{name} is a language model");
    };
    let decoder = Decoder::new(&language.shape, language.vocab_size, &case.weights).unwrap();
    let numbers = |value: &Value| -> Vec<i64> {
        let numbers = value.as_array().unwrap().iter();
        numbers.map(|number| number.as_i64().unwrap()).collect()
    };
    let likeliest = |states_b1d: &Tensor| {
        let ids_b = decoder.logits(states_b1d).squeeze_dim(1).argmax(-1, false);
        Vec::<i64>::try_from(ids_b).unwrap()
    };
    let mut cache = decoder.cache(i64::MAX);
    // Which prompt each row of the cache answers, and its answer so far.
    let mut rows: Vec<(usize, Vec<i64>)> = Vec::new();
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut waiting = 0..prompts.len();
    loop {
        let new: Vec<usize> = waiting.by_ref().take(5 - rows.len()).collect();
        if !new.is_empty() {
            let ids = new.iter().map(|at| numbers(&prompts[*at]["prompt"]));
            let ids: Vec<Vec<i64>> = ids.collect();
            let first = likeliest(&read(&decoder, &ids, &mut cache));
            rows.extend(new.into_iter().zip(first.into_iter().map(|id| vec![id])));
        }
        for row in (0..rows.len()).rev() {
            let wanted = numbers(&prompts[rows[row].0]["tokens"]).len();
            // Some end earlier than others.
            if rows[row].1.len() == wanted - rows[row].0 % 3 {
                let (at, answer) = rows.swap_remove(row);
                cache.remove(row);
                answers[at] = answer;
            }
        }
        assert_eq!(cache.rows(), rows.len());
        if rows.is_empty() {
            break;
        }
        let last = rows.iter().map(|(_, answer)| *answer.last().unwrap());
        let ids_b1 = Tensor::from_slice(&last.collect::<Vec<_>>()).unsqueeze(1);
        let h_b1d = decoder.embed(&ids_b1).unwrap();
        let states = decoder.advance(&h_b1d, SecondHalves::Mlp, &mut cache);
        for ((_, answer), id) in rows.iter_mut().zip(likeliest(&states.unwrap())) {
            answer.push(id);
        }
    }
    for (at, (answer, prompt)) in answers.iter().zip(prompts).enumerate() {
        let wanted = numbers(&prompt["tokens"]);
        assert!(answer.len() > 5);
        assert_eq!(*answer, wanted[..answer.len()], "{name}, prompt {at}");
    }
    prompts.len()
}

#[test]
fn what_is_generated_is_what_transformers_generates() {
    let json = std::fs::read(folders().join("greedy.json")).unwrap();
    let models: BTreeMap<String, Vec<Value>> = serde_json::from_slice(&json).unwrap();
    let prompts = models
        .iter()
        .map(|(name, prompts)| tch::no_grad(|| goes_on_alike(name, prompts)));
    assert!(prompts.sum::<usize>() > 200);
    assert_eq!(models.len(), 9);
}
