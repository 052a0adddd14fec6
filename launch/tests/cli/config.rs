//! `mks2 config`, usage errors, completions, help.

use crate::support::{JOB, Place};

#[test]
fn show_tells_value_and_origin() {
    let place = Place::new();
    let mut command = place.mks2(&["config", "show", "job.toml", "--json", "--set", "seed=9"]);
    let output = command
        .env("MKS2__STAGE__MEMORY__STEPS", "77")
        .output()
        .expect("runs");
    let settings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let origin = |key: &str| {
        let found = settings
            .as_array()
            .expect("a list")
            .iter()
            .find(|entry| entry["key"] == key);
        let entry = found.unwrap_or_else(|| panic!("no {key}"));
        (
            entry["value"].to_string(),
            entry["origin"].as_str().expect("text").to_owned(),
        )
    };
    assert_eq!(origin("seed"), ("\"9\"".into(), "set".into()));
    assert_eq!(
        origin("stage.memory.steps"),
        ("\"77\"".into(), "environment".into())
    );
    assert_eq!(origin("lanes"), ("\"4\"".into(), "file".into()));
    assert_eq!(origin("threads"), ("\"1\"".into(), "default".into()));
}

#[test]
fn show_prints_a_table_and_a_job_file_that_loads_again() {
    let place = Place::new();
    let table = place.run(&["config", "show", "job.toml"]);
    assert!(
        table.done().out.contains("job.toml line 4"),
        "{}",
        table.out
    );
    let toml = place.run(&["config", "show", "job.toml", "--toml"]);
    place.write("resolved.toml", &toml.done().out);
    let again = place.run(&["config", "show", "resolved.toml", "--toml"]);
    assert_eq!(again.done().out, toml.out);
}

#[test]
fn the_schema_is_json_and_knows_the_stages() {
    let schema = Place::new().run(&["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&schema.done().out).expect("JSON");
    assert!(schema["properties"]["stage"].is_object());
}

#[test]
fn check_tells_all_problems_at_once() {
    let place = Place::with_job(
        &JOB.replace("lanes = 4", "lanes = 0")
            .replace("width = 96", "width = 0"),
    );
    let ended = place.run(&["config", "check", "job.toml"]);
    ended.refused(3, &[]);
    assert!(
        ended.err.contains("lanes") && ended.err.contains("model.memory.width"),
        "{}",
        ended.err
    );
    Place::new().run(&["config", "check", "job.toml"]).done();
}

#[test]
fn an_unknown_key_gets_a_suggestion() {
    let place = Place::with_job(&JOB.replace("lanes = 4", "lames = 4"));
    let ended = place.run(&["config", "show", "job.toml"]);
    ended.refused(3, &["'lames'", "job.toml line 4", "did you mean 'lanes'?"]);
}

#[test]
fn a_wrong_type_tells_what_was_expected_and_found() {
    let place = Place::with_job(&JOB.replace("lanes = 4", "lanes = \"four\""));
    let ended = place.run(&["config", "show", "job.toml"]);
    ended.refused(
        3,
        &["lanes must be a whole number", "text, \"four\"", "line 4"],
    );
}

#[test]
fn a_missing_job_file_is_named() {
    Place::new()
        .run(&["plan", "nothing.toml"])
        .refused(3, &["nothing.toml", "does not exist"]);
}

#[test]
fn usage_errors_end_with_2() {
    let place = Place::new();
    let cases: [(&[&str], &str); 6] = [
        (&["train"], "<JOB>"),
        (&["fly"], "'fly'"),
        (&["train", "job.toml", "--workers", "0"], "1 or larger"),
        (&["train", "job.toml", "--resume", "fuzz"], "neither auto"),
        (&["train", "job.toml", "--listen", "999"], "127.0.0.1:7000"),
        (&["data", "import", "x.tar", "--otu", "y"], "'--out'"),
    ];
    for (words, word) in cases {
        place.run(words).refused(2, &[word, "--help"]);
    }
    place
        .run(&["config", "show", "job.toml", "--set", "seed"])
        .refused(2, &["key=value"]);
}

#[test]
fn help_has_examples_and_exit_codes() {
    let place = Place::new();
    assert!(place.run(&["--help"]).done().out.contains("Exit codes"));
    assert!(
        place
            .run(&["train", "--help"])
            .done()
            .out
            .contains("Examples:")
    );
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = Place::new().run(&["completions", shell]);
        assert!(ended.done().out.contains("mks2"), "{shell}");
    }
}

#[test]
fn errors_are_json_when_logs_are() {
    let ended = Place::new().run(&["plan", "nothing.toml", "--log-format", "json"]);
    let last = ended.err.lines().last().expect("a line");
    let error: serde_json::Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(
        (ended.code, &error["exit_code"]),
        (Some(3), &serde_json::json!(3))
    );
    assert!(error["fix"].is_string());
    let ended = Place::new().run(&["fly", "--log-format", "json"]);
    let error: serde_json::Value = serde_json::from_str(&ended.err).expect("JSON");
    assert_eq!(
        (ended.code, &error["exit_code"]),
        (Some(2), &serde_json::json!(2))
    );
}

#[test]
fn watch_has_examples_of_its_own() {
    let help = Place::new().run(&["watch", "--help"]);
    assert!(help.done().out.contains("mks2 watch runs/emoji"));
    assert!(!help.out.contains("mks2 status"), "{}", help.out);
}

#[test]
fn the_settings_page_is_what_the_program_prints() {
    let page = include_str!("../../../docs/settings.md");
    let printed = Place::new()
        .run(&["config", "reference"])
        .done()
        .out
        .clone();
    let cure = "run: cargo run -q -p mks2 -- config reference > docs/settings.md";
    assert!(page == printed, "docs/settings.md is not current; {cure}");
}

#[test]
fn the_pages_name_every_exit_code_and_variable() {
    let codes = include_str!("../../../docs/cli.md");
    for code in mks2_proto::failure::ExitCode::ALL {
        assert!(codes.contains(&format!("| {} |", code.code())), "{code:?}");
    }
    let variables = include_str!("../../../docs/configuration.md");
    for (name, _) in mks2_proto::env::ALL
        .iter()
        .filter(|(name, _)| name.starts_with("MKS2"))
    {
        assert!(variables.contains(name), "{name}");
    }
}
