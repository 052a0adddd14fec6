//! Requests that nobody would send on purpose: whatever comes, `mks2 serve` answers it and stays.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chance::Chance;
use crate::client::Server;
use crate::lab::root;

/// Seconds for which requests are made up.
const SECONDS: &str = "MKS2_FUZZ_SECONDS";

/// Answers that whoever asks is to blame for, or that are right.
const ANSWERS: [u16; 9] = [200, 400, 404, 405, 413, 415, 422, 429, 431];

/// A good request to each path.
fn requests() -> Vec<(&'static str, Value)> {
    let picture = "data:image/png;base64,iVBORw0KGgo=";
    let message = json!([{"role": "user", "content": [
        {"type": "text", "text": "the fox"}, {"type": "image_url", "image_url": {"url": picture}},
    ]}]);
    let completion = json!({
        "model": "fox", "prompt": ["the fox", "a"], "max_tokens": 2, "temperature": 0.7, "top_p": 0.9,
        "top_k": 5, "seed": 3, "stop": ["."], "echo": true, "logprobs": 2, "n": 1, "best_of": 1,
        "logit_bias": {}, "suffix": null, "user": "me",
    });
    let stream = json!({
        "prompt": [[3, 4], [5]], "max_tokens": 1, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let chat = json!({"messages": message, "max_completion_tokens": 2, "n": 1, "stream": false});
    vec![
        ("/v1/completions", completion),
        ("/v1/completions", stream),
        ("/v1/chat/completions", chat),
        (
            "/tokenize",
            json!({"prompt": "the fox", "add_special_tokens": true}),
        ),
        ("/detokenize", json!({"tokens": [3, 4, 5]})),
    ]
}

/// Values that stand where others are expected.
fn odd(chance: &mut Chance) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!(-0.0),
        json!(""),
        json!("\u{0}\u{202e}\u{10ffff}"),
        json!("fox ".repeat(5000)),
        json!([]),
        json!([[[]]]),
        json!({}),
        json!([-1, 4_294_967_296_u64, 319, 320]),
        json!({"url": "http://127.0.0.1:9/x.png"}),
        json!("data:image/png;base64,AAAA"),
    ];
    values[chance.below(values.len())].clone()
}

/// Changes one place somewhere in a value.
fn change(value: &mut Value, chance: &mut Chance) {
    match value {
        Value::Object(fields) if !fields.is_empty() && chance.below(5) > 0 => {
            let at = chance.below(fields.len());
            let key = fields.keys().nth(at).expect("a key").clone();
            match chance.below(4) {
                0 => drop(fields.remove(&key)),
                1 => drop(fields.insert(format!("{key}x"), odd(chance))),
                _ => change(&mut fields[&key], chance),
            }
        }
        Value::Array(items) if !items.is_empty() && chance.below(5) > 0 => {
            let at = chance.below(items.len());
            match chance.below(4) {
                0 => drop(items.remove(at)),
                1 => items.push(odd(chance)),
                _ => change(&mut items[at], chance),
            }
        }
        place => *place = odd(chance),
    }
}

/// A request of odd fields, or of odd characters.
fn made_up(good: &Value, chance: &mut Chance) -> String {
    let mut value = good.clone();
    for _ in 0..=chance.below(2) {
        change(&mut value, chance);
    }
    let mut text: Vec<char> = value.to_string().chars().collect();
    if chance.below(4) == 0 {
        for _ in 0..=chance.below(3) {
            let at = chance.below(text.len() + 1);
            match chance.below(3) {
                0 => text.truncate(at),
                1 => text.insert(at, ['{', '"', '\\', ',', '\u{7f}'][chance.below(5)]),
                _ => drop(text.splice(at..at, ['['; 300])),
            }
        }
    }
    text.into_iter().collect()
}

#[test]
fn whatever_is_asked_is_answered() {
    let seconds = std::env::var(SECONDS)
        .ok()
        .and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(3));
    let published = root().join("worker/tests/fixtures/pretrained/base-decoder");
    let server = Server::of(published, &["--name", "fox"]);
    let usual = json!({"prompt": "the fox", "max_tokens": 8, "temperature": 0});
    let right = server.post("/v1/completions", &usual).good()["choices"].clone();
    let mut chance = Chance::new();
    let requests = requests();
    let (mut asked, mut good) = (0, 0);
    while Instant::now() < end {
        let (path, request) = &requests[chance.below(requests.len())];
        let body = made_up(request, &mut chance);
        let answer = server.ask("POST", path, &body);
        let is_known = ANSWERS.contains(&answer.status);
        assert!(
            is_known,
            "{} to {path} {body}: {}",
            answer.status, answer.body
        );
        asked += 1;
        good += u32::from(answer.status == 200);
    }
    println!("{asked} requests, {good} answered with 200");
    assert_eq!(
        server.post("/v1/completions", &usual).good()["choices"],
        right
    );
    server.end("TERM").done();
}
