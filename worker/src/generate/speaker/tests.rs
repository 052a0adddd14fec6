use std::path::Path;

use mks2_proto::generate::{Prompt, Score};
use serde_json::{Value, json};

use super::*;
use crate::generate::answers;

/// The fixture with another tokenizer.
fn speaker(change: impl FnOnce(&mut Value, &mut Value)) -> Speaker {
    let of = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pretrained/base-decoder");
    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(of).expect("there") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("copied");
    }
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|name| folder.path().join(name));
    let mut values = files.each_ref().map(|path| {
        let bytes = std::fs::read(path).expect("there");
        serde_json::from_slice::<Value>(&bytes).expect("JSON")
    });
    let [tokenizer, settings] = &mut values;
    change(tokenizer, settings);
    for (path, value) in files.iter().zip(&values) {
        std::fs::write(path, value.to_string()).expect("written");
    }
    let source = Source::Folder {
        url: folder.path().display().to_string(),
        strict: true,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let place = (None, Device::Cpu);
    Speaker::open(&source, place, runtime.handle()).expect("a model")
}

/// Nothing stands before a text.
fn without_opening(tokenizer: &mut Value) {
    tokenizer["post_processor"] = Value::Null;
}

/// The log-likelihoods of the last tokens of a text.
fn scores(speaker: &Speaker, (ids, own): (Vec<i64>, usize)) -> Vec<Option<f64>> {
    let prompt = Prompt {
        what: What::Tokens(to_tokens(&ids)),
        score: Some(Score {
            prompt: own as u32,
            top: 1,
        }),
        max_tokens: Some(0),
        ..Prompt::default()
    };
    let answers = tch::no_grad(|| answers(speaker, vec![prompt], 1)).expect("answered");
    let answer = answers.into_iter().next().expect("one").expect("good");
    answer.scores.iter().map(|one| one.token.logprob).collect()
}

#[test]
fn the_first_token_of_a_choice_without_a_prompt_is_predicted_too() {
    let nothing = What::Text(String::new());
    let speaker_of = |begin: Value| {
        speaker(|tokenizer, settings| {
            without_opening(tokenizer);
            settings["bos_token"] = begin;
        })
    };
    // The end token where there is no begin token, as with Qwen2.
    for (begin, prefix) in [(Value::Null, 1), (json!("<|begin|>"), 0)] {
        let speaker = speaker_of(begin);
        let bare = speaker.encoder.ids("x").expect("encoded");
        assert_eq!(bare.len(), 1);
        let (ids, own) = speaker.continued(&nothing, "", "x").expect("good");
        assert_eq!((&ids, own), (&vec![prefix, bare[0]], 1));
        let found = scores(&speaker, (ids, own));
        assert!(found[0].is_some_and(|logprob| logprob < 0.0), "{found:?}");
        // One that begins with it is not preceded by another one.
        let name = speaker.encoder.entry(prefix).expect("a name");
        let (ids, own) = speaker.continued(&nothing, &name, "x").expect("good");
        assert_eq!((ids, own), (vec![prefix, bare[0]], 1));
    }
    // Where texts are opened, nothing is put before them.
    let speaker = speaker(|_, _| ());
    let (ids, own) = speaker.continued(&nothing, "", "x").expect("good");
    assert_eq!((ids[0], ids.len(), own), (0, 2, 1));
}
