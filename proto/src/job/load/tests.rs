//! Precedence, origins, and every message about a wrong file.

use std::path::PathBuf;

use super::*;

const SAMPLE: &str = include_str!("../sample.toml");

struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.toml");
    std::fs::write(&path, text).expect("written");
    File {
        _folder: folder,
        path,
    }
}

fn sets(sets: &[&str]) -> Overrides {
    Overrides {
        sets: sets.iter().map(ToString::to_string).collect(),
        variables: Vec::new(),
    }
}

fn variables(variables: &[(&str, &str)]) -> Overrides {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Overrides {
        sets: Vec::new(),
        variables: variables.iter().map(owned).collect(),
    }
}

fn loaded(overrides: &Overrides) -> Resolved {
    load(&file(SAMPLE).path, overrides).expect("loads")
}

/// Number of the sample's line that holds `text`, from 1.
fn line_of(text: &str) -> usize {
    1 + SAMPLE
        .lines()
        .position(|line| line.contains(text))
        .expect("the line is there")
}

/// `job.toml line N`, for the line that holds `text`.
fn place(text: &str) -> String {
    format!("job.toml line {}", line_of(text))
}

/// The failure of the sample with `from` replaced by `to`.
fn failure(from: &str, to: &str) -> Failure {
    assert!(SAMPLE.contains(from), "the sample has no {from}");
    load(
        &file(&SAMPLE.replacen(from, to, 1)).path,
        &Overrides::default(),
    )
    .expect_err("refused")
}

fn origin<'a>(resolved: &'a Resolved, key: &str) -> &'a Origin {
    let found = resolved.origins.iter().find(|setting| setting.key == key);
    &found
        .unwrap_or_else(|| panic!("no {key} in {:#?}", resolved.origins))
        .origin
}

#[test]
fn precedence_is_set_then_environment_then_file_then_default() {
    let plain = loaded(&Overrides::default());
    assert_eq!(plain.job.seed, 7);
    assert_eq!(origin(&plain, "seed"), &Origin::File(line_of("seed = 7")));
    assert_eq!(origin(&plain, "threads"), &Origin::Default);
    assert_eq!(
        origin(&plain, "stage.memory.optimizer.lr"),
        &Origin::File(line_of("lr = 0.002"))
    );
    assert_eq!(
        origin(&plain, "stage.memory.optimizer.eps"),
        &Origin::Default
    );

    let mut both = variables(&[("MKS2__SEED", "8")]);
    assert_eq!(loaded(&both).job.seed, 8);
    assert_eq!(
        origin(&loaded(&both), "seed"),
        &Origin::Environment("MKS2__SEED".into())
    );
    both.sets = vec!["seed=9".into(), "seed=10".into()];
    assert_eq!(loaded(&both).job.seed, 10);
    assert_eq!(origin(&loaded(&both), "seed"), &Origin::Set);
}

#[test]
fn stages_are_addressed_by_name() {
    let resolved = loaded(&sets(&[
        "stage.memory.steps=50",
        "stage.with-memory.experts.adapter_blocks=[1, 2]",
        "stage.memory.data.0.weight=3",
        "data.colors.url=/elsewhere",
        "model.memory.form=plain",
        "name=other",
    ]));
    assert_eq!(resolved.job.stages[1].steps, 50);
    assert_eq!(
        resolved.job.stages[2]
            .experts
            .as_ref()
            .expect("set")
            .adapter_blocks,
        [1, 2]
    );
    assert!((resolved.job.stages[1].data[0].weight - 3.0).abs() < 1e-12);
    assert_eq!(resolved.job.data["colors"].url, "/elsewhere");
    assert_eq!(resolved.job.name, "other");
    assert_eq!(origin(&resolved, "stage.memory.steps"), &Origin::Set);
}

#[test]
fn variables_are_matched_without_case_and_dashes() {
    let resolved = loaded(&variables(&[
        ("MKS2__STAGE__WITH_MEMORY__EXPERTS__LORA_RANK", "8"),
        ("MKS2__DATA__EMOJI__URL", "gs://b/e"),
        ("MKS2__CHECKPOINT__EVERY_STEPS", "5"),
    ]));
    assert_eq!(
        resolved.job.stages[2]
            .experts
            .as_ref()
            .expect("set")
            .lora_rank,
        8
    );
    assert_eq!(resolved.job.data["emoji"].url, "gs://b/e");
    assert_eq!(resolved.job.checkpoint.every_steps, 5);
}

#[test]
fn relative_urls_belong_to_the_job_file() {
    let sample = file(SAMPLE);
    let folder = sample
        .path
        .parent()
        .expect("a folder")
        .canonicalize()
        .expect("real");
    let resolved = load(&sample.path, &sets(&["data.colors.url=../up"])).expect("loads");
    assert_eq!(
        PathBuf::from(&resolved.job.data["emoji"].url),
        folder.join("corpora/emoji")
    );
    assert_eq!(
        PathBuf::from(&resolved.job.data["colors"].url),
        folder.parent().expect("parent").join("up")
    );
}

#[test]
fn the_resolved_file_gives_the_same_job_again() {
    let resolved = loaded(&sets(&["seed=12", "stage.memory.optimizer.lr=0.0003"]));
    assert_eq!(parse(&resolved.toml).expect("parses"), resolved.job);
    let again = load(&file(&resolved.toml).path, &Overrides::default()).expect("loads");
    assert_eq!(again.job, resolved.job);
    assert_eq!(again.toml, resolved.toml);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
    let top = failure("seed = 7", "sede = 7");
    assert!(top.what.contains("unknown key 'sede'"), "{top}");
    assert!(top.why.contains(&place("seed = 7")), "{top}");
    assert!(top.cure.contains("'seed'"), "{top}");
    let nested = failure("lora_rank = 4", "lora_rnak = 4");
    assert!(nested.why.contains(&place("lora_rank = 4")), "{nested}");
    assert!(nested.cure.contains("'lora_rank'"), "{nested}");
    let inline = failure(
        "{ corpus = \"emoji\" }",
        "{ corpus = \"emoji\", wieght = 1 }",
    );
    assert!(inline.cure.contains("'weight'"), "{inline}");
    let misplaced = failure("seed = 7", "lora_rank = 7");
    assert!(misplaced.cure.contains("stage.NAME.experts"), "{misplaced}");
    assert_eq!(misplaced.exit.code(), 3);
}

#[test]
fn an_unknown_key_of_an_override_is_named_with_its_origin() {
    let set = load(&file(SAMPLE).path, &sets(&["stage.memory.stepz=5"])).expect_err("refused");
    assert!(set.why.contains("--set"), "{set}");
    assert!(set.cure.contains("'steps'"), "{set}");
    let stage = load(&file(SAMPLE).path, &sets(&["stage.memroy.steps=5"])).expect_err("refused");
    assert!(stage.cure.contains("'memory'"), "{stage}");
    let key = "stage.evaluate.examples=0";
    let home = load(&file(SAMPLE).path, &sets(&[key])).expect_err("refused");
    assert!(
        home.cure.contains("stage.evaluate.evaluate.examples"),
        "{home}"
    );
    let name = "MKS2__STAGE__MEMORY__STEPZ";
    let env = load(&file(SAMPLE).path, &variables(&[(name, "5")])).expect_err("refused");
    assert!(env.why.contains(name), "{env}");
    let form = load(&file(SAMPLE).path, &sets(&["seed"])).expect_err("refused");
    assert_eq!(form.exit.code(), 2);
}

#[test]
fn a_wrong_type_is_named_with_what_was_expected_and_found() {
    let text = failure("steps = 30", "steps = \"many\"");
    assert!(
        text.what
            .contains("stage.memory.steps must be a whole number"),
        "{text}"
    );
    assert!(
        text.why.contains(&place("steps = 30")) && text.why.contains("text, \"many\""),
        "{text}"
    );
    let negative = failure("lanes = 4", "lanes = -4");
    assert!(
        negative
            .what
            .contains("not negative and at most 4294967295"),
        "{negative}"
    );
    assert!(
        text.what.ends_with("a whole number and not negative"),
        "{text}"
    );
    let word = failure("form = \"gated\"", "form = \"gatde\"");
    assert!(word.cure.contains("\"gated\""), "{word}");
    let list = failure("from = [\"bootstrap\"]", "from = \"bootstrap\"");
    assert!(list.what.contains("must be a list"), "{list}");
    let set = load(&file(SAMPLE).path, &sets(&["lanes=many"])).expect_err("refused");
    assert!(set.why.contains("--set"), "{set}");
    let infinite = failure("lr = 0.002", "lr = inf");
    assert!(infinite.what.contains("must be a number"), "{infinite}");
}

#[test]
fn a_missing_key_is_named_with_its_meaning() {
    let missing = failure("hidden_size = 64\n", "");
    assert!(
        missing
            .what
            .contains("model.decoder.hidden_size is missing"),
        "{missing}"
    );
    assert!(missing.why.contains("residual stream"), "{missing}");
}

#[test]
fn a_broken_rule_is_named_with_its_place() {
    let rule = failure("lanes = 4", "lanes = 5");
    assert!(
        rule.what.contains("stage.bootstrap.batch_size = 16"),
        "{rule}"
    );
    assert!(rule.what.contains(&place("batch_size = 16")), "{rule}");
}

#[test]
fn check_lists_all_problems() {
    let text = SAMPLE
        .replacen("lanes = 4", "lanes = 0", 1)
        .replacen("width = 96", "width = 0", 1);
    let found = check(&file(&text).path, &Overrides::default()).expect("readable");
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    let broken = failure("seed = 7", "seed = = 7");
    assert!(broken.why.contains("line 3"), "{broken}");
    let absent = load(&PathBuf::from("/nowhere/job.toml"), &Overrides::default());
    let absent = absent.expect_err("refused");
    assert_eq!(absent.exit.code(), 3);
    assert!(absent.why.contains("does not exist"), "{absent}");
}

#[test]
fn the_schema_covers_stages() {
    let schema = json_schema();
    assert!(
        schema.pointer("/properties/stage/items").is_some(),
        "{schema}"
    );
}
