use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{DateTime, Local, TimeZone};
use serde::Deserialize;

use super::*;

/// What transformers makes of dialogues.
#[derive(Deserialize)]
struct Chats {
    now: String,
    dialogues: Vec<Vec<Said>>,
    templates: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Expected {
    template: String,
    tokens: BTreeMap<String, String>,
    /// Of each dialogue.
    found: Vec<Found>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    Text(String),
    Refused(String),
}

fn now() -> DateTime<Local> {
    Local.with_ymd_and_hms(2026, 11, 29, 7, 5, 9).unwrap()
}

fn template(text: &str, tokens: BTreeMap<String, String>) -> Result<Template, Failure> {
    let found = ChatTemplate {
        text: text.into(),
        file: "chat_template.jinja".into(),
        tokens,
    };
    Template::new(found, now)
}

fn rendered(text: &str) -> Result<String, Failure> {
    template(text, BTreeMap::new())?.render(&[Message::of_user("  a fox ")])
}

#[test]
fn dialogues_have_the_texts_of_transformers() {
    let chats = Path::new(env!("CARGO_MANIFEST_DIR"));
    let chats = chats.join("../worker/tests/fixtures/pretrained/chats.json");
    let chats: Chats = serde_json::from_slice(&std::fs::read(chats).unwrap()).unwrap();
    assert_eq!(chats.now, now().format("%Y-%m-%dT%H:%M:%S").to_string());
    let (mut texts, mut refusals) = (0, 0);
    for (name, expected) in chats.templates {
        let template = template(&expected.template, expected.tokens).unwrap();
        assert_eq!(expected.found.len(), chats.dialogues.len());
        for (number, (said, right)) in chats.dialogues.iter().zip(&expected.found).enumerate() {
            let said = said.iter().map(|said| Message {
                role: said.role.clone(),
                content: said.content.clone(),
            });
            let found = match template.render(&said.collect::<Vec<_>>()) {
                Ok(text) => Found::Text(text),
                Err(failure) => Found::Refused(failure.why),
            };
            assert_eq!(found, *right, "{name}, dialogue {number}");
            match found {
                Found::Text(_) => texts += 1,
                Found::Refused(_) => refusals += 1,
            }
        }
    }
    assert!(texts > 100 && refusals > 5, "{texts} and {refusals}");
}

#[test]
fn marks_of_what_is_trained_on_leave_no_trace() {
    for (text, right) in [
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("a {%- generation -%} b {%- endgeneration +%} c", "ab c"),
        ("{%generation%}\nb\n  {% endgeneration %}\nc", "b\nc"),
        ("{% set generation = 1 %}{{ generation }}", "1"),
        ("{% if true %}generation %}{% endif %}", "generation %}"),
    ] {
        assert_eq!(rendered(text).unwrap(), right, "{text}");
    }
}

#[test]
fn templates_without_end_are_ended() {
    let begun = Instant::now();
    let deep = format!(
        "{{% set ns = namespace(a=1) %}}{{% for b in range(99999) %}}{{% set ns.a = {}ns.a{} %}}{{% endfor %}}",
        "[".repeat(40),
        "]".repeat(40),
    );
    for text in [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% set ns = namespace(a='aaaaaaaa') %}{% for b in range(64) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ 'aaaaaaaa'.replace('', 'b' * 9999999) }}",
        "{% for a in range(99999) %}{{ messages | tojson | upper }}{% endfor %}",
        "{{ 'abc' | center(1000000000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{% set ns = namespace(a=[]) %}{% for b in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | tojson }}",
        &deep,
    ] {
        let failure = rendered(text).expect_err(text);
        assert_eq!(failure.exit, ExitCode::Data, "{failure}");
    }
    // Far longer in an unoptimized build than in what is used.
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_long_dialogue_takes_a_part_of_what_there_is() {
    let json = "{% for message in messages %}{{ message.content | trim ~ message.role }}\
                {{ message | tojson }}{% endfor %}";
    let template = template(json, BTreeMap::new()).unwrap();
    let long: Vec<Message> = (0..4096)
        .map(|_| Message::of_user("word ".repeat(50)))
        .collect();
    let text = template.render(&long).unwrap();
    assert!(text.len() > 2 << 20);
}

#[test]
fn what_is_wrong_with_a_template_is_said_with_its_place() {
    let failure = rendered("{% for a in %}").unwrap_err();
    assert_eq!(failure.exit, ExitCode::Checkpoint);
    assert!(
        failure.why.contains("chat_template.jinja: syntax error"),
        "{failure}"
    );
    for (text, words) in [
        ("\n\n{{ messages[0].tools.name }}", "undefined"),
        ("\n\n{{ messages | nofilter }}", "nofilter"),
        ("\n\n{{ 'a'.nomethod() }}", "nomethod"),
        ("\n\n{{ strftime_now('%Q') }}", "%Q"),
        ("\n\n{% include '/etc/passwd' %}", "include"),
    ] {
        let failure = rendered(text).unwrap_err();
        assert!(failure.why.contains(words), "{failure}");
    }
}
