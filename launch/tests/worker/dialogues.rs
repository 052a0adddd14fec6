//! Dialogues with published models, by their chat templates: over HTTP and on the command line.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Server;
use crate::lab::{Ended, mks2, root};

fn fixtures() -> PathBuf {
    root().join("worker/tests/fixtures/pretrained")
}

/// A template, and dialogues with the tokens that transformers reads and generates for them.
fn served() -> Value {
    let chats = std::fs::read(fixtures().join("chats.json")).expect("there");
    let chats: Value = serde_json::from_slice(&chats).expect("JSON");
    chats["served"].clone()
}

/// The model with a chat template, and with what else is given.
fn model(template: &str, more: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(fixtures().join("base-decoder")).expect("there") {
        let from = entry.expect("read").path();
        let to = folder.path().join(from.file_name().expect("a name"));
        std::fs::copy(from, to).expect("copied");
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).expect("written");
    for (name, value) in more {
        std::fs::write(folder.path().join(name), value.to_string()).expect("written");
    }
    folder
}

fn chat(server: &Server, messages: &Value, more: Value) -> crate::client::Response {
    let mut request = json!({"messages": messages, "temperature": 0, "max_tokens": 12});
    for (key, value) in more.as_object().expect("fields") {
        request[key] = value.clone();
    }
    server.post("/v1/chat/completions", &request)
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

#[test]
fn dialogues_are_read_and_answered_as_by_transformers() {
    let served = served();
    let folder = model(served["template"].as_str().expect("a text"), &[]);
    let server = Server::of(folder.path(), &[]);
    let dialogues = served["dialogues"].as_array().expect("dialogues");
    assert_eq!(dialogues.len(), 3);
    for dialogue in dialogues {
        let said = json!({"tokens": dialogue["greedy"]});
        let said = server.post("/detokenize", &said).good()["prompt"].clone();
        let answer = chat(&server, &dialogue["messages"], json!({})).good();
        let choice = &answer["choices"][0];
        assert_eq!(
            choice["message"],
            json!({"role": "assistant", "content": said})
        );
        assert_eq!(choice["finish_reason"], "length");
        // There is one begin token, and special tokens in the text are tokens.
        let ids = dialogue["ids"].as_array().expect("tokens");
        assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
        let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
        let events = chat(&server, &dialogue["messages"], streamed).events();
        let parts = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(json!(parts.collect::<String>()), said);
        assert_eq!(events.last().expect("events")["usage"], answer["usage"]);
    }
    // Parts of a message stand below each other.
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let parts = chat(&server, &json!([user(parts)]), json!({})).good();
    let lines = chat(&server, &json!([user(json!("a\nb"))]), json!({})).good();
    assert_eq!(parts["choices"], lines["choices"]);
    assert_eq!(parts["usage"], lines["usage"]);
}

#[test]
fn what_a_template_does_not_take_is_refused_in_its_own_words() {
    let served = served();
    let folder = model(served["template"].as_str().expect("a text"), &[]);
    let server = Server::of(folder.path(), &[]);
    let fox = user(json!("a fox?"));
    let picture = json!({"type": "image_url", "image_url": {"url": "data:;base64,AA"}});
    for (messages, words) in [
        (json!([fox, fox]), "two turns in a row"),
        (json!([]), "there is no message"),
        (
            json!([fox, {"role": "tool", "content": "red"}]),
            "of system, user, assistant, not of 'tool'",
        ),
        (json!([user(json!([picture]))]), "cannot be shown pictures"),
        (json!([user(json!("fox ".repeat(200)))]), "too long"),
    ] {
        chat(&server, &messages, json!({})).refused(400, words);
    }
    chat(&server, &json!([fox]), json!({})).good();
}

#[test]
fn a_template_that_never_ends_or_is_none_does_not_keep_others_waiting() {
    let endless = model(
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        &[],
    );
    let broken = model("{% for %}", &[]);
    let fox = json!([user(json!("a fox?"))]);
    for (folder, words) in [
        (endless.path().to_owned(), "a loop without end"),
        (
            broken.path().to_owned(),
            "chat_template.jinja: syntax error",
        ),
        (
            fixtures().join("base-decoder"),
            "the model has no chat template",
        ),
    ] {
        let server = Server::of(folder, &[]);
        chat(&server, &fox, json!({})).refused(400, words);
        let text = json!({"prompt": "the", "max_tokens": 2});
        server.post("/v1/completions", &text).good();
    }
}

#[test]
fn an_answer_ends_with_what_ends_a_turn() {
    let served = served();
    let dialogue = &served["dialogues"][1];
    let greedy = dialogue["greedy"].as_array().expect("tokens");
    let place = greedy.iter().position(|token| *token != greedy[0]);
    let place = place.expect("another token");
    let ends = json!({"eos_token_id": [1, greedy[place]]});
    let template = served["template"].as_str().expect("a text");
    let folder = model(template, &[("generation_config.json", ends)]);
    let server = Server::of(folder.path(), &[]);
    let answer = chat(&server, &dialogue["messages"], json!({})).good();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], place);
}

#[test]
fn a_prompt_on_the_command_line_is_what_the_user_says() {
    let served = served();
    let dialogue = &served["dialogues"][0];
    let folder = model(served["template"].as_str().expect("a text"), &[]);
    let prompt = dialogue["messages"][0]["content"].as_str().expect("a text");
    let ask = |folder: PathBuf| {
        let mut command = mks2(&["generate", "--chat", "--json", "--max-tokens", "12"]);
        command.args(["--prompt", prompt]).arg(folder);
        Ended::from(command.output().expect("mks2 runs"))
    };
    let answered = ask(folder.path().to_owned());
    answered.done();
    let answer: Value = serde_json::from_str(answered.out.trim()).expect("JSON");
    assert_eq!(answer["tokens"], dialogue["greedy"]);
    assert_eq!(answer["prompt"], prompt);
    ask(fixtures().join("base-decoder")).refused(8, &["the model has no chat template"]);
}
