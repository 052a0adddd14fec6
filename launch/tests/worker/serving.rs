//! `mks2 serve`: real requests to a real server.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::client::Server;
use crate::lab::{Ended, Lab, awaited, mks2, root, signal, workers_of};

fn published() -> PathBuf {
    root().join("worker/tests/fixtures/pretrained/base-decoder")
}

/// Texts, their tokens, and what transformers generates behind them.
fn cases() -> Vec<Value> {
    let cases = std::fs::read(published().join("tokens.json")).expect("there");
    serde_json::from_slice(&cases).expect("JSON")
}

fn greedy(prompt: &Value, more: Value) -> Value {
    let mut request = json!({"prompt": prompt, "temperature": 0, "max_tokens": 12});
    for (key, value) in more.as_object().expect("fields") {
        request[key] = value.clone();
    }
    request
}

#[test]
fn completions_are_those_of_transformers_as_text_tokens_lists_and_streams() {
    let server = Server::of(published(), &["--name", "fox"]);
    let cases = cases();
    let texts: Vec<&Value> = cases.iter().map(|case| &case["text"]).collect();
    let all = server.post(
        "/v1/completions",
        &greedy(&json!(texts), json!({"model": "fox"})),
    );
    let all = all.good();
    assert_eq!(all["object"], "text_completion");
    assert_eq!(all["model"], "fox");
    let mut prompt_tokens = 0;
    for (place, case) in cases.iter().enumerate() {
        let choice = &all["choices"][place];
        assert_eq!(choice["index"], place);
        let right = case["greedy"].as_array().expect("tokens");
        let ends = right.iter().any(|token| *token == 1);
        assert_eq!(
            choice["finish_reason"],
            if ends { "stop" } else { "length" }
        );
        let right: Vec<&Value> = right.iter().take_while(|token| **token != 1).collect();
        // By tokens, it is the same, and the scores name them.
        let scored = json!({"logprobs": 0});
        let one = server
            .post("/v1/completions", &greedy(&case["ids"], scored))
            .good();
        assert_eq!(one["choices"][0]["text"], choice["text"]);
        assert_eq!(one["usage"]["completion_tokens"], right.len());
        let ids = case["ids"].as_array().expect("ids").len();
        assert_eq!(one["usage"]["prompt_tokens"], ids);
        prompt_tokens += ids;
        // And so is the stream.
        let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
        let events = server
            .post("/v1/completions", &greedy(&case["text"], streamed))
            .events();
        let (usage, parts) = events.split_last().expect("events");
        assert_eq!(usage["usage"], one["usage"]);
        assert_eq!(usage["choices"], json!([]));
        assert!(
            parts
                .iter()
                .all(|part| part["usage"].is_null() && part.get("usage").is_some())
        );
        let text: String = parts
            .iter()
            .filter_map(|part| part["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(choice["text"], text);
        let last = &parts.last().expect("a part")["choices"][0];
        assert_eq!(last["finish_reason"], choice["finish_reason"]);
    }
    assert_eq!(all["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(server.metric("mks2_answers_total"), 3 * cases.len() as u64);
    assert_eq!(server.metric("mks2_prompts_waiting"), 0);
}

#[test]
fn probabilities_are_the_models_and_an_echo_has_those_of_the_prompt() {
    let server = Server::of(published(), &[]);
    let ids = json!([0, 60, 61, 62, 63]);
    let echo = json!({"echo": true, "logprobs": 5, "max_tokens": 3});
    let scored = server.post("/v1/completions", &greedy(&ids, echo)).good();
    let choice = &scored["choices"][0];
    let logprobs = &choice["logprobs"];
    let list = |name: &str| logprobs[name].as_array().expect("a list").clone();
    let (tokens, found, top) = (list("tokens"), list("token_logprobs"), list("top_logprobs"));
    assert_eq!(tokens.len(), 8);
    assert_eq!(
        (found.len(), top.len(), list("text_offset").len()),
        (8, 8, 8)
    );
    assert!(found[0].is_null() && top[0].is_null());
    for place in 1..8 {
        let mine = found[place].as_f64().expect("a number");
        let top = top[place].as_object().expect("tokens");
        // The token itself is among them, or comes beside them.
        assert!((5..=6).contains(&top.len()), "{top:?}");
        assert!(top.values().any(|one| one.as_f64() == Some(mine)));
        let best = top
            .values()
            .filter_map(Value::as_f64)
            .fold(f64::MIN, f64::max);
        assert!(mine <= best && best < 0.0);
        // What was generated is the likeliest.
        assert!(place < 5 || mine == best);
    }
    // The prompt of one token more has the scores of the shorter one, and the answer's first token.
    let more = json!({"echo": true, "logprobs": 1, "max_tokens": 0});
    let prompt = json!([0, 60, 61, 62]);
    let shorter = server
        .post("/v1/completions", &greedy(&prompt, more))
        .good();
    assert_eq!(shorter["choices"][0]["finish_reason"], "length");
    let scores = shorter["choices"][0]["logprobs"]["token_logprobs"]
        .as_array()
        .expect("scores");
    assert_eq!(scores.len(), 4);
    for place in 1..4 {
        let difference =
            scores[place].as_f64().expect("a number") - found[place].as_f64().expect("a number");
        assert!(difference.abs() < 1e-5, "{difference}");
    }
    // All that can come next is certain.
    let next = json!({"logprobs": 5, "max_tokens": 1});
    let next = server
        .post("/v1/completions", &greedy(&json!("the"), next))
        .good();
    let next = next["choices"][0]["logprobs"]["top_logprobs"][0]
        .as_object()
        .expect("tokens")
        .clone();
    let sum: f64 = next.values().filter_map(Value::as_f64).map(f64::exp).sum();
    assert!(sum > 0.01 && sum < 1.0, "{sum}");
}

#[test]
fn the_tokenizer_answers_as_harnesses_ask() {
    let server = Server::of(published(), &[]);
    for case in cases() {
        let ask = json!({"prompt": case["text"], "add_special_tokens": true});
        let tokens = server.post("/tokenize", &ask).good();
        assert_eq!(tokens["tokens"], case["ids"]);
        let bare = json!({"prompt": case["text"], "add_special_tokens": false});
        let bare = server.post("/tokenize", &bare).good();
        let ids = case["ids"].as_array().expect("ids");
        assert_eq!(
            bare["tokens"].as_array().map(Vec::as_slice),
            Some(&ids[1..])
        );
        let back = server
            .post("/detokenize", &json!({"tokens": bare["tokens"]}))
            .good();
        let text = case["text"].as_str().expect("a text");
        assert_eq!(back["prompt"], text);
    }
    let info = server.get("/tokenizer_info").good();
    assert_eq!(
        (&info["eos_token"], &info["bos_token"]),
        (&json!("<|end|>"), &json!("<|begin|>"))
    );
    // Its files name no other.
    assert!(info["pad_token"].is_null() && info["chat_template"].is_null());
    let model = server.get("/v1/models").good()["data"][0].clone();
    assert_eq!(
        (&model["id"], &model["max_model_len"]),
        (&json!("base-decoder"), &json!(128))
    );
    server.get("/health").good();
    server
        .post("/detokenize", &json!({"tokens": [7, 320]}))
        .refused(400, "no token 320");
}

#[test]
fn a_question_with_a_picture_is_answered_as_on_the_command_line() {
    let lab = Lab::enter();
    lab.evaluated().done();
    let run = lab.path("evaluated");
    let found = std::fs::read(run.join("evaluation.json")).expect("there");
    let found: Value = serde_json::from_slice(&found).expect("JSON");
    let server = Server::of(&run, &["--stage", "memory", "--name", "memory"]);
    for example in found["examples"].as_array().expect("examples") {
        let message = json!({"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": example["picture"]}},
        ]});
        let request = json!({"model": "memory", "messages": [message], "temperature": 0});
        let answer = server.post("/v1/chat/completions", &request).good();
        let said = answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("a text");
        assert_eq!(said.trim(), example["generated"]);
        let mut request = request;
        request["stream"] = json!(true);
        let events = server.post("/v1/chat/completions", &request).events();
        let parts = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(parts.collect::<String>(), said);
    }
    let broken = STANDARD.encode(b"\x89PNG\r\n\x1a\n and no more");
    let broken = json!({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{broken}")}},
    ]}]});
    server
        .post("/v1/chat/completions", &broken)
        .refused(400, "picture cannot be read");
}

#[test]
fn what_cannot_be_answered_is_refused_in_the_words_of_the_api() {
    let server = Server::of(published(), &["--name", "fox"]);
    let refused = |fields: Value, status: u16, words: &str| {
        server
            .post("/v1/completions", &greedy(&json!("the"), fields))
            .refused(status, words);
    };
    refused(json!({"model": "whale"}), 404, "this one is called 'fox'");
    refused(json!({"n": 2}), 400, "n other than 1");
    refused(json!({"best_of": 2}), 400, "best_of");
    refused(json!({"suffix": "end"}), 400, "suffix");
    refused(json!({"logit_bias": {"5": 1}}), 400, "logit_bias");
    refused(json!({"presence_penalty": 0.5}), 400, "presence_penalty");
    refused(json!({"logprobs": 6}), 400, "5 at most");
    refused(json!({"logprobs": 1, "stream": true}), 400, "not streamed");
    refused(json!({"temperature": -1}), 400, "temperature cannot be -1");
    refused(json!({"top_p": 0}), 400, "top-p cannot be 0");
    refused(json!({"max_tokens": 0}), 400, "nothing is to be generated");
    refused(json!({"stop": vec!["x"; 17]}), 400, "at most 16 stop texts");
    refused(
        json!({"stop": "x".repeat(1025)}),
        400,
        "may have 1024 bytes",
    );
    refused(json!({"top_k": -2}), 400, "0 or -1 for all");
    refused(json!({"temperature": "hot"}), 422, "temperature must be");
    refused(
        json!({"prompt": vec!["x"; 257]}),
        400,
        "at most 256 may wait",
    );
    refused(
        json!({"prompt": "fox ".repeat(100_000)}),
        400,
        "400000 bytes",
    );
    let text = json!({"prompt": "x".repeat(2 << 20)});
    server
        .post("/tokenize", &text)
        .refused(400, "too much for the tokenizer");
    refused(json!({"prompt": []}), 400, "there is no prompt");
    refused(json!({"prompt": [0, 5000]}), 400, "no token 5000");
    refused(json!({"prompt": "fox ".repeat(200)}), 400, "too long");
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    server
        .post("/v1/chat/completions", &chat)
        .refused(400, "no chat template");
    server
        .ask("POST", "/v1/completions", "{\"prompt\": ")
        .refused(400, "JSON");
    server
        .ask("POST", "/v1/completions", "{\"prompt\": 3}")
        .refused(422, "a list of tokens");
    server.get("/v1/completions").refused(405, "another method");
    server.get("/v1/embeddings").refused(404, "no such path");
    let large = json!({"prompt": "x".repeat(40 << 20)}).to_string();
    let large = server.ask("POST", "/v1/completions", &large);
    assert_eq!(large.status, 413, "{}", large.body);
    // After all of that it answers, also those who say null for what they do not say.
    let nothing = json!({"stream": null, "echo": null, "n": null, "stop": null, "logprobs": null});
    let answer = server.post("/v1/completions", &greedy(&json!("the"), nothing));
    answer.good();
}

#[test]
fn a_stream_that_is_refused_has_the_status_of_a_refusal() {
    let server = Server::of(published(), &[]);
    for bad in [json!([0, 5000]), json!("fox ".repeat(200))] {
        let stream = json!({"prompt": bad, "stream": true});
        let refused = server.post("/v1/completions", &greedy(&bad, stream));
        assert_eq!(refused.status, 400, "{}", refused.body);
    }
    let long = greedy(&json!("fox ".repeat(200)), json!({}));
    let long = server.post("/v1/completions", &long).json();
    let (code, param) = (&long["error"]["code"], &long["error"]["param"]);
    assert_eq!(
        (code, param),
        (&json!("context_length_exceeded"), &json!("prompt"))
    );
}

/// Polls until it is so.
fn soon(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "not in 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many prompts wait, once the answers have arrived that were complete before.
fn settled(server: &Server) -> u64 {
    let (mut last, mut alike) = (0, 0);
    while alike < 10 {
        let now = server.metric("mks2_prompts_waiting");
        alike = if now == last { alike + 1 } else { 0 };
        last = now;
        std::thread::sleep(Duration::from_millis(20));
    }
    last
}

/// An answer that takes a while: many prompts, each until there are no positions left.
fn long() -> String {
    let prompts: Vec<Vec<u32>> = (0..64).map(|number| vec![0, 60 + number]).collect();
    let request =
        json!({"prompt": prompts, "max_tokens": 125, "temperature": 2, "seed": 1, "stream": true});
    request.to_string()
}

#[test]
fn too_many_are_told_to_come_again_and_who_goes_away_makes_room() {
    let server = Server::of(published(), &["--queue", "64", "--batch", "2"]);
    let mut reading = server.send("POST", "/v1/completions", &long());
    let mut first = [0; 64];
    reading.read_exact(&mut first).expect("it begins");
    // From here on no answer becomes complete.
    let program = workers_of(server.id())[0];
    signal(program, "STOP");
    let waiting = settled(&server);
    assert!((1..=64).contains(&waiting), "{waiting}");
    // One more than there is room for.
    let prompts = vec!["the"; 65 - waiting as usize];
    let busy = server.post("/v1/completions", &greedy(&json!(prompts), json!({})));
    busy.refused(429, "try again");
    // Nobody reads the request of whoever comes too late.
    let large = json!({"prompt": "x".repeat(8 << 20)}).to_string();
    server
        .ask("POST", "/v1/completions", &large)
        .refused(429, "try again");
    assert!(busy.head.contains("retry-after: 1"), "{}", busy.head);
    drop(reading);
    signal(program, "CONT");
    soon("room for others", || {
        server.metric("mks2_prompts_waiting") == 0
    });
    server
        .post("/v1/completions", &greedy(&json!("the"), json!({})))
        .good();
}

#[test]
fn what_was_asked_is_answered_before_the_end() {
    let mut server = Server::of(published(), &["--batch", "2"]);
    let mut reading = server.send("POST", "/v1/completions", &long());
    let mut all = vec![0; 64];
    reading.read_exact(&mut all).expect("it begins");
    let rest = std::thread::spawn(move || {
        reading.read_to_end(&mut all).expect("it ends well");
        String::from_utf8(all).expect("UTF-8")
    });
    // As a service manager does: the signal goes to all processes. While it stands still, nothing is answered.
    let program = workers_of(server.id())[0];
    signal(program, "TERM");
    signal(program, "STOP");
    signal(server.id(), "TERM");
    soon("a probe is told", || server.get("/health").status == 503);
    server
        .post("/v1/completions", &greedy(&json!("the"), json!({})))
        .refused(503, "takes nothing new");
    signal(program, "CONT");
    awaited(server.child.take().expect("it is there")).done();
    let all = rest.join().expect("read");
    assert!(
        all.contains("data: [DONE]"),
        "{}",
        &all[all.len().saturating_sub(300)..]
    );
    assert_eq!(all.matches("\"finish_reason\":\"").count(), 64);
}

#[test]
fn a_program_that_dies_ends_the_server_with_a_reason() {
    let mut server = Server::of(published(), &["--batch", "2"]);
    let mut reading = server.send("POST", "/v1/completions", &long());
    let mut first = [0; 64];
    reading.read_exact(&mut first).expect("it begins");
    let child = server.child.take().expect("it is there");
    let program = workers_of(child.id());
    assert_eq!(program.len(), 1);
    signal(program[0], "KILL");
    awaited(child).with_code(6);
    let mut rest = String::new();
    let _ = reading.read_to_string(&mut rest);
    assert!(
        rest.contains("\"error\""),
        "a cut stream looks whole: {rest}"
    );
}

#[test]
fn an_address_in_use_is_refused() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("known").to_string();
    let mut command = mks2(&["serve", "--listen", &address]);
    command
        .arg(published())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ended::from(command.output().expect("mks2 runs"))
        .refused(6, &["cannot be listened on", &address]);
}
