//! The conversation, with a published model.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use mks2_proto::generate::{End, Sampling, Score, Source, What};
use serde_json::{Value, json};

use super::*;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pretrained/base-decoder")
}

fn opening(batch: u32) -> Opening {
    Opening {
        model: Source::Folder {
            url: model().display().to_string(),
            strict: true,
        },
        device: "cpu".into(),
        precision: None,
        threads: 1,
        batch,
        cache_bytes: None,
    }
}

fn prompt(id: u64, text: &str) -> Prompt {
    Prompt {
        id,
        what: What::Text(text.into()),
        max_tokens: Some(12),
        ..Prompt::default()
    }
}

/// All events of a conversation, and how it ended.
fn conversation(lines: &[Value]) -> (Vec<Event>, Result<(), Failure>) {
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut output = Vec::new();
    let ended = run_with(Cursor::new(input), &mut output, |_| ());
    let output = String::from_utf8(output).expect("UTF-8");
    let events = output
        .lines()
        .map(|line| serde_json::from_str(line).expect("an event"));
    (events.collect(), ended)
}

/// An answer: text, tokens, why it is complete.
type Answer = (String, Vec<u32>, End);

/// The answers by prompt, and those that were refused.
fn answers(batch: u32, prompts: &[Prompt]) -> (BTreeMap<u64, Answer>, BTreeMap<u64, Words>) {
    answers_of(&opening(batch), prompts)
}

fn answers_of(
    opening: &Opening,
    prompts: &[Prompt],
) -> (BTreeMap<u64, Answer>, BTreeMap<u64, Words>) {
    let mut lines = vec![json!(opening)];
    lines.extend(
        prompts
            .iter()
            .map(|prompt| json!(Ask::Prompt(prompt.clone()))),
    );
    let (events, ended) = conversation(&lines);
    ended.expect("a good conversation");
    let (mut texts, mut done, mut refused) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let ready = Event::Ready {
        positions: 128,
        sees: false,
        end: "<|end|>".into(),
        begin: Some("<|begin|>".into()),
    };
    assert_eq!(events[0], ready);
    for event in events.into_iter().skip(1) {
        match event {
            Event::Text { id, text } => {
                assert!(!done.contains_key(&id), "text behind the end");
                texts.entry(id).or_insert_with(String::new).push_str(&text);
            }
            Event::Done {
                id, end, tokens, ..
            } => {
                let text: String = texts.remove(&id).unwrap_or_default();
                assert!(done.insert(id, (text, tokens, end)).is_none());
            }
            Event::Refused { id, why } => assert!(refused.insert(id, why).is_none()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(done.len() + refused.len(), prompts.len());
    (done, refused)
}

/// Texts and what transformers generates behind them.
fn expected() -> Vec<(String, Vec<u32>)> {
    let json = std::fs::read(model().join("tokens.json")).expect("there");
    let cases: Vec<Value> = serde_json::from_slice(&json).expect("JSON");
    let cases = cases.into_iter().map(|case| {
        let ids = case["greedy"].as_array().expect("tokens").iter();
        let ids = ids.map(|id| id.as_u64().expect("an id") as u32);
        (
            case["text"].as_str().expect("a text").to_owned(),
            ids.collect(),
        )
    });
    cases.collect()
}

/// The end token of the fixture.
const END: u32 = 1;

#[test]
fn answers_are_those_of_transformers_however_many_are_given_side_by_side() {
    let expected = expected();
    let prompts: Vec<Prompt> = (0..)
        .zip(&expected)
        .map(|(id, (text, _))| prompt(id, text))
        .collect();
    for batch in [1, 3, 64] {
        let (found, refused) = answers(batch, &prompts);
        assert!(refused.is_empty(), "{refused:?}");
        for ((_, tokens, end), (text, right)) in found.values().zip(&expected) {
            let ends = right.iter().position(|token| *token == END);
            let right = &right[..ends.unwrap_or(right.len())];
            assert_eq!(tokens, right, "behind {text:?}, {batch} side by side");
            let why = if ends.is_some() {
                End::Stop
            } else {
                End::Length
            };
            assert_eq!(*end, why);
        }
    }
}

/// A conversation in which there may be keys and values of so many positions.
fn with_room(positions: u64) -> Opening {
    let config = std::fs::read(model().join("config.json")).expect("there");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let number = |name: &str| config[name].as_u64().expect("a number");
    let head = number("hidden_size") / number("num_attention_heads");
    let elements = 2 * number("num_hidden_layers") * number("num_key_value_heads") * head;
    Opening {
        cache_bytes: Some(positions * elements * 4),
        ..opening(64)
    }
}

#[test]
fn with_little_room_answers_wait_for_each_other_and_are_the_same() {
    let texts = expected();
    let prompts: Vec<Prompt> = (0..)
        .zip(&texts)
        .map(|(id, (text, _))| Prompt {
            // To the last position.
            max_tokens: (id % 2 == 0).then_some(12),
            ..prompt(id, text)
        })
        .collect();
    let (right, _) = answers(64, &prompts);
    for positions in [128, 200] {
        let (found, refused) = answers_of(&with_room(positions), &prompts);
        assert!(refused.is_empty(), "{refused:?}");
        assert_eq!(found, right, "{positions} positions");
    }
}

#[test]
fn what_there_can_never_be_room_for_is_refused() {
    let long = prompt(1, &"fox ".repeat(12));
    let prompts = [prompt(0, "the"), long, prompt(2, "a picture")];
    let (found, refused) = answers_of(&with_room(12), &prompts);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 2]);
    assert!(refused[&1].why.contains("12 positions"), "{refused:?}");
    assert!(refused[&1].cure.contains("--cache-bytes"), "{refused:?}");
    // As where the model has no more positions.
    assert_eq!(found[&0].2, End::Length);
}

#[test]
fn a_seed_decides_what_is_drawn_whatever_is_drawn_beside_it() {
    let drawn = |id, seed| Prompt {
        sampling: Sampling {
            temperature: 1.5,
            seed,
            ..Sampling::default()
        },
        ..prompt(id, "the red fox")
    };
    let (alone, _) = answers(1, &[drawn(0, 5)]);
    let (beside, _) = answers(8, &[drawn(0, 6), drawn(1, 5), drawn(2, 7)]);
    assert_eq!(beside[&1], alone[&0]);
    assert_ne!(beside[&0], beside[&1]);
    assert_ne!(beside[&2], beside[&1]);
}

#[test]
fn stop_texts_and_the_largest_number_of_tokens_end_an_answer() {
    let (whole, _) = answers(1, &[prompt(0, "the red fox")]);
    let (text, tokens, _) = &whole[&0];
    let middle: String = text.chars().skip(2).take(2).collect();
    let stopped = Prompt {
        stop: vec!["never said".into(), middle.clone()],
        ..prompt(0, "the red fox")
    };
    let short = Prompt {
        max_tokens: Some(3),
        ..prompt(1, "the red fox")
    };
    let (found, _) = answers(2, &[stopped, short]);
    let at = text.find(&middle).expect("a part of it");
    assert_eq!(found[&0].0, text[..at]);
    assert_eq!(found[&0].2, End::Stop);
    assert_eq!(found[&1].1, tokens[..3]);
    assert_eq!(found[&1].2, End::Length);
}

#[test]
fn a_special_token_ends_an_answer_where_it_is_a_stop_text() {
    let drawn = |seed, stop: &[&str]| Prompt {
        sampling: Sampling {
            temperature: 3.0,
            seed,
            ..Sampling::default()
        },
        stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
        max_tokens: Some(100),
        ..prompt(seed, "the red fox")
    };
    let prompts: Vec<Prompt> = (0..32).map(|seed| drawn(seed, &[])).collect();
    let (all, _) = answers(32, &prompts);
    const BEGIN: u32 = 0;
    let found = all.iter().find_map(|(seed, (_, tokens, _))| {
        let at = tokens.iter().position(|token| *token == BEGIN)?;
        Some((*seed, &tokens[..at]))
    });
    let (seed, before) = found.expect("one of them has a begin token");
    let (found, _) = answers(1, &[drawn(seed, &["<|begin|>", "never said"])]);
    let (_, tokens, end) = &found[&seed];
    assert_eq!((tokens.as_slice(), *end), (before, End::Stop));
}

/// The text of an echo with its answer, and the scores of all tokens.
fn echoed(what: What) -> (String, u32, Vec<Scored>) {
    let asked = Prompt {
        what,
        echo: true,
        score: Some(Score {
            prompt: u32::MAX,
            top: 0,
        }),
        ..prompt(0, "")
    };
    let lines = [json!(opening(1)), json!(Ask::Prompt(asked))];
    let (events, ended) = conversation(&lines);
    ended.expect("a good conversation");
    let mut all = String::new();
    for event in events {
        match event {
            Event::Text { text, .. } => all += &text,
            Event::Done {
                prompt_tokens,
                scores,
                ..
            } => return (all, prompt_tokens, scores),
            _ => {}
        }
    }
    panic!("no end");
}

#[test]
fn offsets_say_where_tokens_stand_in_the_text() {
    let given = "a 🐳 naïve fox";
    let (text, prompt_tokens, scores) = echoed(What::Text(given.into()));
    let characters: Vec<char> = text.chars().collect();
    let ids: Vec<u32> = scores.iter().map(|one| one.token.id).collect();
    for scored in &scores {
        let said = &scored.token.text;
        // Special tokens and parts of characters are called by their names.
        if said.chars().all(|c| c.is_ascii_lowercase() || c == ' ') {
            let there = &characters[scored.offset as usize..];
            let found: String = there.iter().take(said.chars().count()).collect();
            assert_eq!(&found, said);
        }
    }
    let border = given.chars().count() as u32;
    let of_answer = scores.iter().map(|one| one.offset >= border);
    let wanted = (0..scores.len()).map(|at| at >= prompt_tokens as usize);
    assert!(of_answer.eq(wanted), "{scores:?}");
    // The same as tokens, with a special one at their end.
    let mut tokens = ids[..prompt_tokens as usize].to_vec();
    tokens.push(0);
    let (_, _, scores) = echoed(What::Tokens(tokens));
    let prompt = scores.iter().filter(|one| one.offset < border).count();
    assert_eq!(prompt, prompt_tokens as usize + 1);
}

#[test]
fn without_a_largest_number_an_answer_ends_where_positions_do() {
    let open = Prompt {
        max_tokens: None,
        ..prompt(0, "the red fox")
    };
    let (found, _) = answers(1, &[open]);
    let (_, tokens, end) = &found[&0];
    assert!(
        tokens.len() > 12,
        "it would have ended without a limit, too"
    );
    assert_eq!(*end, End::Length);
}

#[test]
fn prompts_that_cannot_be_answered_are_refused_and_the_others_answered() {
    let picture = |text: &str| Prompt {
        picture: Some(text.into()),
        ..prompt(1, "the red fox")
    };
    for (bad, words) in [
        (prompt(1, &"fox ".repeat(200)), "too long"),
        (picture("%%"), "no base64"),
        (picture("iVBORw0KGgo="), "cannot be shown pictures"),
        (
            Prompt {
                max_tokens: Some(0),
                ..prompt(1, "the red fox")
            },
            "nothing is to be generated",
        ),
        (
            Prompt {
                sampling: Sampling {
                    temperature: -1.0,
                    ..Sampling::default()
                },
                ..prompt(1, "the red fox")
            },
            "temperature cannot be -1",
        ),
    ] {
        let (found, refused) = answers(4, &[prompt(0, "the"), bad, prompt(2, "a picture")]);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 2]);
        let why = &refused[&1];
        assert!(
            format!("{} {}", why.what, why.why).contains(words),
            "{why:?}"
        );
        assert!(!why.cure.is_empty());
    }
}

#[test]
fn what_ends_the_conversation_is_its_last_line() {
    let mut nowhere = opening(1);
    nowhere.model = Source::Folder {
        url: "/nowhere/at/all".into(),
        strict: true,
    };
    let mut gpu = opening(1);
    gpu.device = "tpu".into();
    let good = json!(opening(1));
    for (lines, exit, words) in [
        (vec![json!(nowhere)], ExitCode::Checkpoint, "config.json"),
        (vec![json!(gpu)], ExitCode::Settings, "'tpu'"),
        (vec![json!({"model": 3})], ExitCode::Usage, "cannot be read"),
        (
            vec![
                good.clone(),
                json!({"ask": "prompt", "what": {"text": "no id"}}),
            ],
            ExitCode::Usage,
            "id",
        ),
    ] {
        let (events, ended) = conversation(&lines);
        let failure = ended.expect_err("it fails");
        assert_eq!(failure.exit, exit, "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
        let why = Words::from(&failure);
        assert_eq!(events.last(), Some(&Event::Failed { why }));
    }
    let (events, ended) = conversation(&[good]);
    ended.expect("nothing is asked, and that is all right");
    assert_eq!(events.len(), 1);
}

#[test]
fn probabilities_of_all_tokens_are_one_together() {
    let scored = Prompt {
        score: Some(Score {
            prompt: u32::MAX,
            top: 320,
        }),
        max_tokens: Some(3),
        ..prompt(0, "the red fox")
    };
    let lines = [json!(opening(1)), json!(Ask::Prompt(scored))];
    let (events, ended) = conversation(&lines);
    ended.expect("a good conversation");
    let Some(Event::Done {
        prompt_tokens,
        tokens,
        scores,
        ..
    }) = events.last()
    else {
        panic!("{events:?}");
    };
    assert!(scores.len() >= *prompt_tokens as usize + tokens.len());
    assert_eq!((&scores[0].token.logprob, scores[0].top.len()), (&None, 0));
    for scored in &scores[1..] {
        let all: f64 = scored
            .top
            .iter()
            .filter_map(|one| Some(one.logprob?.exp()))
            .sum();
        assert!((all - 1.0).abs() < 1e-6, "{all}");
        let mine = scored.top.iter().find(|one| one.id == scored.token.id);
        assert_eq!(mine.map(|one| one.logprob), Some(scored.token.logprob));
    }
    let answer = &scores[*prompt_tokens as usize..];
    for (scored, token) in answer.iter().zip(tokens) {
        assert_eq!((scored.token.id, scored.top[0].id), (*token, *token));
    }
}

#[test]
fn what_is_cancelled_is_not_answered() {
    let lines = [
        json!(opening(1)),
        json!(Ask::Prompt(Prompt {
            max_tokens: None,
            ..prompt(0, "the")
        })),
        json!(Ask::Prompt(prompt(1, "a picture"))),
        json!(Ask::Cancel { id: 1 }),
        json!(Ask::Cancel { id: 7 }),
        json!(Ask::Tokenize {
            id: 2,
            text: "the".into(),
            special: true
        }),
    ];
    let (events, ended) = conversation(&lines);
    ended.expect("a good conversation");
    let is_of = |event: &&Event, wanted| event.id() == Some(wanted);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Done { id: 0, .. }))
    );
    assert!(!events.iter().any(|event| is_of(&event, 1)), "{events:?}");
    let tokens = events.iter().find(|event| is_of(event, 2));
    let Some(Event::Tokens { tokens, .. }) = tokens else {
        panic!("{events:?}");
    };
    assert_eq!(tokens[0], 0);
}
