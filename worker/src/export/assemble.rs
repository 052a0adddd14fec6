//! A model as a folder has it: what it is, and its tensors under the names there.

use mks2_dataset::pretrained::config::{Described, Language};
use mks2_dataset::pretrained::mks2::{LoraWords, MemoryWords, Mks2, SecondHalf, Words};
use mks2_proto::failure::Failure;
use mks2_proto::job::{self, Bridge, Decoder};
use mks2_proto::params;
use tch::Tensor;

use super::fold::fold;
use crate::model::{Memory, Weights};
use crate::trained::{Half, TrainedModel};

/// A model as a folder has it.
pub(super) struct Assembled {
    /// What it is.
    pub(super) described: Described,
    /// Its tensors, in the order of the parameter table.
    pub(super) tensors: Vec<(String, Tensor)>,
}

impl Assembled {
    /// Puts a model together, its adapters folded into their matrices if that is wanted.
    pub(super) fn of(trained: &TrainedModel, merge: bool) -> Result<Self, Failure> {
        // What cannot be written is told before anything is computed.
        let described = describe(trained, merge)?;
        let mut weights = trained.weights.clone();
        let settings = match &trained.half {
            Half::Experts(settings) => Some(settings.as_ref()),
            Half::Mlp | Half::Memory(_) => None,
        };
        if let Some(settings) = settings {
            if settings.shuffle_memory {
                shuffle(&mut weights, trained, settings)?;
            }
            if merge {
                fold(&mut weights, &trained.model, settings)?;
            }
        }
        let specs = match &described {
            Described::Mks2(model) => model.specs(),
            _ => params::decoder(&trained.model.decoder, trained.encoder.vocab_size()),
        };
        let memories = memories(&trained.half);
        let tensors = specs.into_iter().map(|spec| {
            let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
            let tensor = weights.shaped(&in_the_run(&spec.name, &memories), &shape)?;
            Ok((spec.name, tensor))
        });
        Ok(Self {
            tensors: tensors.collect::<Result<_, Failure>>()?,
            described,
        })
    }
}

/// What the model is: one of the published families where nothing is added to the decoder.
fn describe(trained: &TrainedModel, merge: bool) -> Result<Described, Failure> {
    let shape = Decoder {
        max_text_tokens: u32::try_from(trained.positions).unwrap_or(u32::MAX),
        head_dim: Some(trained.model.decoder.head()),
        ..trained.model.decoder.clone()
    };
    let vocab_size = trained.encoder.vocab_size();
    let words = match &trained.half {
        Half::Mlp => None,
        Half::Memory(name) => Some(Words {
            second_half: SecondHalf::Memory,
            memories: vec![memory_words(&trained.model, name)],
            lora: None,
            router_blocks: Vec::new(),
            router_bias: 0.0,
            question: None,
            answer: None,
            answer_after_end: false,
        }),
        // With nothing beside the MLPs the mixture is these alone.
        Half::Experts(settings) if merge && settings.memories.is_empty() && !trained.sees() => None,
        Half::Experts(settings) => Some(words_of(&trained.model, settings, merge)),
    };
    match words {
        Some(words) => Ok(Described::Mks2(Box::new(Mks2 {
            language: Language {
                family: "mks2".to_owned(),
                shape,
                vocab_size,
            },
            words,
            vision: trained.sees().then(|| trained.model.vision.clone()),
            bridge: bridge(trained),
        }))),
        None => match Language::of(&shape, vocab_size) {
            Some(language) => Ok(Described::Decoder(language)),
            None => Err(Failure::settings(
                "the stage cannot be written as a published model",
                "no family has both a sliding window and biases on queries, keys and values",
                "export a memory or experts stage",
            )),
        },
    }
}

/// What stands between encoder and decoder; whoever reads it trains it no more.
fn bridge(trained: &TrainedModel) -> Bridge {
    match trained.model.q_former() {
        Some(shape) if trained.sees() => Bridge {
            train_q_former: false,
            ..shape.clone()
        },
        _ => Bridge::default(),
    }
}

fn memory_words(model: &job::Model, name: &str) -> MemoryWords {
    let memory = model.memory_of(name);
    MemoryWords {
        width: memory.width,
        form: memory.form,
    }
}

fn words_of(model: &job::Model, settings: &job::Experts, merge: bool) -> Words {
    Words {
        second_half: SecondHalf::Experts,
        memories: settings
            .memories
            .iter()
            .map(|name| memory_words(model, name))
            .collect(),
        lora: (!merge).then(|| LoraWords {
            rank: settings.lora_rank,
            alpha: settings.lora_alpha,
            blocks: settings.adapter_blocks.clone(),
            attention: settings.adapt_attention,
        }),
        router_blocks: settings.router_blocks.clone(),
        router_bias: settings.router_bias,
        question: Some(settings.question.clone()),
        answer: Some(settings.answer.clone()),
        answer_after_end: settings.answer_after_end,
    }
}

/// Names of the memories in the run, in the order of their numbers.
fn memories(half: &Half) -> Vec<String> {
    match half {
        Half::Mlp => Vec::new(),
        Half::Memory(name) => vec![name.clone()],
        Half::Experts(settings) => settings.memories.clone(),
    }
}

/// Writes the memories as the control of the method's claim reads them.
fn shuffle(
    weights: &mut Weights,
    trained: &TrainedModel,
    settings: &job::Experts,
) -> Result<(), Failure> {
    for name in &settings.memories {
        let memory = Memory::new(&trained.model, name, &trained.weights)?;
        let shuffled = memory.shuffled(trained.seed, &trained.weights);
        for (name, matrix) in shuffled.outputs() {
            weights.insert_frozen(&name, matrix);
        }
    }
    Ok(())
}

/// What the run calls a tensor of the folder, where memories have numbers instead of names.
fn in_the_run(name: &str, memories: &[String]) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    let place = match parts.first() {
        Some(&"memory") => 1,
        Some(&"experts") => 3,
        _ => return name.to_owned(),
    };
    if let Some(part) = parts.get_mut(place) {
        let number: Option<usize> = part.parse().ok();
        *part = number
            .and_then(|number| memories.get(number))
            .map_or(*part, String::as_str);
    }
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::in_the_run;

    #[test]
    fn numbers_of_memories_are_their_names_in_the_run() {
        let memories = ["seen".to_owned(), "7".to_owned()];
        for (there, here) in [
            (
                "memory.1.layers.0.up_proj.weight",
                "memory.7.layers.0.up_proj.weight",
            ),
            (
                "experts.layers.1.0.up_proj.lora_a",
                "experts.layers.1.seen.up_proj.lora_a",
            ),
            (
                "experts.layers.0.mlp.up_proj.lora_a",
                "experts.layers.0.mlp.up_proj.lora_a",
            ),
            (
                "experts.layers.0.router.bias",
                "experts.layers.0.router.bias",
            ),
            (
                "model.layers.0.mlp.up_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
            ),
        ] {
            assert_eq!(in_the_run(there, &memories), here);
        }
    }
}
