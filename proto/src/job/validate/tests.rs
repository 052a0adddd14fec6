//! Each rule: the broken value, and the words of the message.

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

/// The sample with a published model beside the one that it trains first.
fn published(job: &mut Job) -> &mut Stage {
    let published = toml::from_str(
        r#"
        name = "published"
        kind = "pretrained"
        pretrained = { decoder = "models/decoder", vision = "s3://bucket/vision" }
        "#,
    );
    let published = published.expect("a stage");
    job.stages.insert(0, published);
    &mut job.stages[0]
}

#[test]
fn published_models_replace_a_bootstrap() {
    let mut job = sample();
    published(&mut job);
    job.stages.remove(1);
    job.stages[1].from = vec!["published".into()];
    job.stages[2].from = vec!["published".into(), "memory".into()];
    job.model.text_tower = None;
    assert_eq!(problems(&job), []);
}

#[test]
fn published_models_have_a_place_and_take_nothing_else() {
    for (key, other) in [("decoder", "vision"), ("vision", "decoder")] {
        let key = format!("stage.published.pretrained.{key}");
        broken(&key, "is empty", |job| {
            let models = published(job).pretrained.as_mut().expect("models");
            match other {
                "vision" => models.decoder = " ".into(),
                _ => models.vision = String::new(),
            }
        });
    }
    broken("stage.published.data", "reads no samples", |job| {
        published(job).data = vec![Source {
            corpus: "emoji".into(),
            weight: 1.0,
        }];
    });
    broken("stage.bootstrap.from", "brings all weights itself", |job| {
        published(job);
        job.stages[1].from = vec!["published".into()];
    });
}

#[test]
fn a_stage_builds_on_one_language_model() {
    let words = "several language models: those of bootstrap, published";
    broken("stage.memory.from", words, |job| {
        published(job);
        job.stages[2].from.push("published".into());
    });
}

/// The sample with another run's memory beside its own.
fn attached(job: &mut Job) -> &mut Stage {
    let attached = toml::from_str(
        r#"
        name = "flowers"
        kind = "attach"
        from = ["bootstrap"]
        attach = { memory = "s3://bucket/flowers" }
        "#,
    );
    job.stages.insert(1, attached.expect("a stage"));
    &mut job.stages[1]
}

#[test]
fn memories_of_other_runs_are_experts_beside_the_own() {
    let mut job = sample();
    attached(&mut job);
    let experts = &mut job.stages[3];
    experts.from.push("flowers".into());
    let settings = experts.experts.as_mut().expect("settings");
    settings.memories.push("flowers".into());
    let mut other = job.model.memory.clone();
    other.width = 7;
    job.model.memories.insert("flowers".into(), other);
    assert_eq!(problems(&job), []);
    assert_eq!(job.base_of("flowers"), Some(&job.stages[0]));
    let settings = job.stages[3].experts.as_mut().expect("settings");
    settings.memories.push("flowers".into());
    let twice = problems(&job);
    assert!(twice[0].why.contains("named twice"), "{twice:#?}");
}

#[test]
fn experts_build_on_the_memories_that_they_mix() {
    let mut job = sample();
    attached(&mut job);
    let settings = job.stages[3].experts.as_mut().expect("settings");
    settings.memories.push("flowers".into());
    let found = problems(&job);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].key, "stage.with-memory.experts.memories");
    assert!(
        found[0].why.contains("no weights of this memory"),
        "{found:#?}"
    );
    assert!(
        found[0]
            .cure
            .contains("add \"flowers\" to stage.with-memory.from")
    );
    // A memory that another stage builds on is there too.
    job.stages[2].from.push("flowers".into());
    assert_eq!(problems(&job), []);
    // Circles are told, not followed.
    job.stages[1].from.push("with-memory".into());
    assert!(!problems(&job).is_empty());
}

#[test]
fn experts_see_pictures_through_the_bridge_of_a_stage_that_they_build_on() {
    let mut job = sample();
    let settings = job.stages[2].experts.as_mut().expect("settings");
    (settings.pictures, settings.memories) = (true, Vec::new());
    assert_eq!(problems(&job), []);
    job.stages[2].from = vec!["bootstrap".into()];
    let found = problems(&job);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].key, "stage.with-memory.experts.pictures");
    assert!(found[0].why.contains("brings a bridge"), "{found:#?}");
    assert!(
        found[0]
            .cure
            .contains("to stage.with-memory.from: memory; or")
    );
    // An attached memory brings one, if it is told to.
    attached(&mut job);
    job.stages[3].from.push("flowers".into());
    assert_eq!(problems(&job), []);
    let settings = job.stages[1].attach.as_mut().expect("settings");
    settings.bridge = false;
    assert_eq!(problems(&job)[0].key, "stage.with-memory.experts.pictures");
}

#[test]
fn an_attached_memory_has_a_place_a_language_model_and_a_shape() {
    let settings = |job: &mut Job| attached(job).attach.clone().expect("settings");
    broken("stage.flowers.attach.memory", "is empty", |job| {
        attached(job).attach = Some(crate::job::Attach::default());
    });
    broken("stage.flowers.attach.id", "64 hexadecimal", |job| {
        let mut named = settings(job);
        named.id = Some("abc".into());
        job.stages[1].attach = Some(named);
    });
    broken("stage.flowers.from", "must come from an earlier", |job| {
        attached(job).from.clear();
    });
    broken("stage.flowers.steps", "trains nothing", |job| {
        attached(job).steps = 3;
    });
    broken("stage.mlp.name", "another part of a block", |job| {
        attached(job).name = "mlp".into();
    });
    broken("model.memories.roses", "is called 'roses'", |job| {
        attached(job);
        let shape = job.model.memory.clone();
        job.model.memories.insert("roses".into(), shape);
    });
    broken("stage.evaluate.evaluate.memory", "neither bridge", |job| {
        let mut text_alone = settings(job);
        text_alone.bridge = false;
        job.stages[1].attach = Some(text_alone);
        let evaluate = job.stages[4].evaluate.as_mut().expect("settings");
        evaluate.memory = Some("flowers".into());
    });
}

#[test]
fn a_bootstrap_has_a_text_side() {
    broken("model.text_tower", "which has a text side", |job| {
        job.model.text_tower = None;
    });
}

#[test]
fn a_bridge_is_linear_or_a_q_former_that_comes_from_one_place() {
    let frozen = |job: &mut Job| {
        job.model.bridge.kind = BridgeKind::QFormer;
        job.model.bridge.train_q_former = false;
    };
    let mut job = sample();
    job.model.bridge.kind = BridgeKind::QFormer;
    assert_eq!(problems(&job), []);
    assert_eq!(
        (sample().model.soft_tokens(), job.model.soft_tokens()),
        (16, 32)
    );
    broken("model.bridge.kind", "a linear bridge has none", |job| {
        job.model.bridge.num_query_tokens = 8;
    });
    broken("model.bridge.hidden_size", "does not divide", |job| {
        job.model.bridge.kind = BridgeKind::QFormer;
        job.model.bridge.num_attention_heads = 7;
    });
    for key in ["num_query_tokens", "cross_attention_frequency"] {
        broken(
            &format!("model.bridge.{key}"),
            "0 leaves nothing to do",
            |job| {
                let bridge = &mut job.model.bridge;
                bridge.kind = BridgeKind::QFormer;
                match key {
                    "num_query_tokens" => bridge.num_query_tokens = 0,
                    _ => bridge.cross_attention_frequency = 0,
                }
            },
        );
    }
    broken(
        "model.bridge.train_q_former",
        "must come from somewhere",
        frozen,
    );
    let place = "stage.published.pretrained.q_former";
    broken(place, "trains one from initial values", |job| {
        published(job).pretrained.get_or_insert_default().q_former = Some("blip".into());
    });
    broken(place, "it is empty", |job| {
        frozen(job);
        published(job).pretrained.get_or_insert_default().q_former = Some(" ".into());
    });
}
