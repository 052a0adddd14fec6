//! Stages that bring weights from elsewhere, and what others build on them.

use super::*;

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
