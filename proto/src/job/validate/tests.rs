//! Each rule: the broken value, and the words of the message.

mod brought;

use super::*;
use crate::job::{Bootstrap, BridgeKind, Evaluate, Experts, Source, Stage};

fn sample() -> Job {
    toml::from_str(include_str!("../sample.toml")).expect("the sample is a job")
}

/// Breaks the sample and expects one problem at `key` whose reason holds `words`.
fn broken(key: &str, words: &str, breaks: impl FnOnce(&mut Job)) {
    let mut job = sample();
    breaks(&mut job);
    let found = problems(&job);
    let hit = found
        .iter()
        .any(|problem| problem.key == key && problem.why.contains(words));
    assert!(hit, "expected {key}: ...{words}...; found {found:#?}");
    assert!(found.iter().all(|problem| !problem.cure.is_empty()));
    assert_eq!(validate(&job).expect_err("invalid").exit.code(), 3);
}

#[test]
fn the_sample_is_valid() {
    assert_eq!(problems(&sample()), []);
}

#[test]
fn the_run_needs_lanes_threads_and_a_device() {
    broken("lanes", "at least one lane", |job| job.lanes = 0);
    broken("lanes", "room for 2000 lanes", |job| job.lanes = 2001);
    broken("threads", "at least one thread", |job| job.threads = 0);
    broken("name", "empty", |job| job.name = " ".into());
    broken("seed", "TOML ends", |job| job.seed = u64::MAX);
    broken("tokenizer.vocab_size", "256 bytes", |job| {
        job.tokenizer.vocab_size = 100
    });
    broken("checkpoint.every_steps", "nothing to do", |job| {
        job.checkpoint.every_steps = 0
    });
    broken("checkpoint.keep_last", "not be resumed", |job| {
        job.checkpoint.keep_last = 0
    });
}

#[test]
fn devices_are_cpu_cuda_or_a_numbered_cuda() {
    for good in ["cpu", "cuda", "cuda:0", "cuda:15"] {
        assert!(is_device(good), "{good}");
    }
    for bad in [
        "", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "CUDA",
    ] {
        assert!(!is_device(bad), "{bad}");
    }
    broken("device", "'gpu' is no device", |job| {
        job.device = "gpu".into()
    });
}

#[test]
fn shapes_must_fit_each_other() {
    broken("model.decoder.hidden_size", "does not divide", |job| {
        job.model.decoder.hidden_size = 66;
    });
    broken(
        "model.decoder.num_key_value_heads",
        "num_key_value_heads = 3",
        |job| {
            job.model.decoder.num_key_value_heads = 3;
        },
    );
    broken("model.decoder.num_attention_heads", "64 / 64 = 1", |job| {
        job.model.decoder.num_attention_heads = 64;
    });
    broken("model.vision.image_size", "patch_size = 7", |job| {
        job.model.vision.patch_size = 7
    });
    broken("model.retrieval.extra_blocks", "outside", |job| {
        job.model.retrieval.extra_blocks = vec![3];
    });
    broken("model.retrieval.extra_blocks", "last one", |job| {
        job.model.retrieval.extra_blocks = vec![2];
    });
    broken("model.decoder.num_hidden_layers", "nothing to do", |job| {
        job.model.decoder.num_hidden_layers = 0;
    });
}

#[test]
fn proposed_sizes_pass_the_check() {
    let mut job = sample();
    job.model.decoder.num_attention_heads = 3;
    job.model.decoder.num_key_value_heads = 3;
    let found = problems(&job);
    assert!(found[0].cure.contains("60 or 66"), "{found:?}");
    for size in [60, 66] {
        job.model.decoder.hidden_size = size;
        assert!(problems(&job).is_empty(), "{:?}", problems(&job));
    }
    job.model.decoder.num_key_value_heads = 2;
    assert!(problems(&job)[0].cure.ends_with("one of 1, 3"));
}

#[test]
fn lanes_divide_every_batch() {
    broken(
        "stage.memory.batch_size",
        "lanes = 4 does not divide batch_size = 18",
        |job| {
            job.stages[1].batch_size = 18;
        },
    );
}

#[test]
fn stages_have_names_of_their_own_and_lean_on_earlier_ones() {
    broken("stage.bootstrap.name", "two stages", |job| {
        job.stages[1].name = "bootstrap".into()
    });
    broken("stage.a.b.name", "letters", |job| {
        job.stages[1].name = "a.b".into()
    });
    broken(
        "stage.bootstrap.from",
        "'memory' is no stage before",
        |job| {
            job.stages[0].from = vec!["memory".into()];
        },
    );
    broken("stage.memory.from", "must come from", |job| {
        job.stages[1].from.clear()
    });
    broken("stage", "trains nothing", |job| job.stages.clear());
}

#[test]
fn a_stage_has_the_table_of_its_own_kind_only() {
    broken("stage.memory.bootstrap", "belongs to", |job| {
        job.stages[1].bootstrap = Some(Bootstrap::default());
    });
}

#[test]
fn a_training_stage_needs_steps_and_known_data() {
    broken("stage.memory.steps", "nothing to do", |job| {
        job.stages[1].steps = 0
    });
    broken("stage.evaluate.steps", "trains nothing", |job| {
        job.stages[3].steps = 5
    });
    broken("stage.memory.data", "needs samples", |job| {
        job.stages[1].data.clear()
    });
    broken("stage.memory.data.0.corpus", "no corpus 'emojis'", |job| {
        job.stages[1].data = vec![Source {
            corpus: "emojis".into(),
            weight: 1.0,
        }];
    });
    broken("stage.memory.data.0.weight", "not above 0", |job| {
        job.stages[1].data[0].weight = 0.0;
    });
    broken("stage.memory.optimizer.beta2", "not in [0, 1)", |job| {
        job.stages[1].optimizer.beta2 = 1.0;
    });
}

#[test]
fn experts_take_memories_of_memory_stages_and_blocks_in_range() {
    let experts = |job: &mut Job, change: fn(&mut Experts)| {
        change(job.stages[2].experts.get_or_insert_default());
    };
    broken(
        "stage.with-memory.experts.memories",
        "no memory stage",
        |job| {
            experts(job, |settings| settings.memories = vec!["bootstrap".into()]);
        },
    );
    broken("stage.with-memory.experts.memories", "twice", |job| {
        experts(job, |settings| {
            settings.memories = vec!["memory".into(), "memory".into()]
        });
    });
    broken(
        "stage.with-memory.experts.shuffle_memory",
        "no memory to shuffle",
        |job| {
            experts(job, |settings| {
                settings.memories.clear();
                settings.shuffle_memory = true;
            });
        },
    );
    broken(
        "stage.with-memory.experts.adapter_blocks",
        "block 3",
        |job| {
            experts(job, |settings| settings.adapter_blocks = vec![3]);
        },
    );
    broken("stage.with-memory.experts.adapter", "it is empty", |job| {
        experts(job, |settings| settings.adapter = Some(" ".into()));
    });
    let id = "stage.with-memory.experts.adapter_id";
    broken(id, "64 hexadecimal", |job| {
        experts(job, |settings| {
            settings.adapter = Some("adapter".into());
            settings.adapter_id = Some("9f2c".into());
        });
    });
    broken(id, "start from nothing", |job| {
        experts(job, |settings| {
            settings.adapter_id = Some("9f2c".repeat(16))
        });
    });
    broken("stage.with-memory.experts.question", "without its", |job| {
        experts(job, |settings| settings.question = "What is {name?".into());
    });
}

#[test]
fn evaluation_compares_experts_stages_on_known_corpora() {
    let evaluate = |job: &mut Job, change: fn(&mut Evaluate)| {
        change(job.stages[3].evaluate.get_or_insert_default());
    };
    broken(
        "stage.evaluate.evaluate.compare.mks2",
        "no experts stage",
        |job| {
            evaluate(job, |settings| {
                settings.compare.insert("mks2".into(), "memory".into());
            });
        },
    );
    broken(
        "stage.evaluate.evaluate.compare.best",
        "none of the compared",
        |job| {
            evaluate(job, |settings| {
                settings.compare.insert("best".into(), "with-memory".into());
            });
        },
    );
    broken("stage.evaluate.evaluate.questions", "held-out", |job| {
        evaluate(job, |settings| settings.questions = None);
    });
    broken(
        "stage.evaluate.evaluate.corpus",
        "measured on a corpus",
        |job| {
            evaluate(job, |settings| settings.corpus = None);
        },
    );
    broken("stage.evaluate.evaluate.memory", "no memory stage", |job| {
        evaluate(job, |settings| settings.memory = Some("bootstrap".into()));
    });
}

#[test]
fn image_features_can_be_compared_and_evened_out() {
    broken("model.memory.gain", "not", |job| {
        job.model.memory.gain = 0.0
    });
    broken("model.retrieval.dim", "cannot be compared", |job| {
        job.model.retrieval.project_images = false;
        job.model.retrieval.dim = job.model.vision.projection_dim + 1;
    });
}
