//! Metrics of `mks2 eval` agree with pycocoevalcap, Stanford's PTBTokenizer and the rules of VQA, as
//! `tests/reference/make_metrics.py` has asked them.

use std::path::{Path, PathBuf};

use mks2_worker::evaluate::metrics::bleu::Statistics;
use mks2_worker::evaluate::metrics::choice::{likeliest, likeliest_per_character};
use mks2_worker::evaluate::metrics::cider::cider_d;
use mks2_worker::evaluate::metrics::rank::rank;
use mks2_worker::evaluate::metrics::rouge::rouge_l;
use mks2_worker::evaluate::metrics::words::words;
use mks2_worker::evaluate::metrics::{Captioned, vqa};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Largest difference.
const NEAR: f64 = 1e-9;

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let folder = std::env::var_os("MKS2_PARITY_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        PathBuf::from,
    );
    let bytes = std::fs::read(folder.join("metrics").join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[track_caller]
fn near(found: f64, right: f64) {
    assert!((found - right).abs() < NEAR, "{found}, expected {right}");
}

#[derive(Deserialize)]
struct Corpus {
    items: Vec<Item>,
    bleu: [f64; 4],
    rouge_l: f64,
    rouges: Vec<f64>,
    cider: f64,
    ciders: Vec<f64>,
}

#[derive(Deserialize)]
struct Item {
    candidate: String,
    references: Vec<String>,
}

fn split(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn captions_score_as_in_pycocoevalcap() {
    let corpora: Vec<Corpus> = fixture("captions.json");
    assert_eq!(corpora[0].items.len(), 200);
    for corpus in &corpora {
        let items = corpus.items.iter().map(|item| Captioned {
            candidate: split(&item.candidate),
            references: item.references.iter().map(|text| split(text)).collect(),
        });
        let items: Vec<Captioned> = items.collect();
        let bleu = items.iter().map(Statistics::of).sum::<Statistics>().bleu();
        for (found, right) in bleu.into_iter().zip(corpus.bleu) {
            near(found, right);
        }
        let ciders = cider_d(&items);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        near(mean(&ciders), corpus.cider);
        let rouges: Vec<f64> = items.iter().map(rouge_l).collect();
        near(mean(&rouges), corpus.rouge_l);
        for (found, right) in ciders.iter().zip(&corpus.ciders) {
            near(*found, *right);
        }
        for (found, right) in rouges.iter().zip(&corpus.rouges) {
            near(*found, *right);
        }
    }
}

#[derive(Deserialize)]
struct Text {
    text: String,
    words: String,
}

#[test]
fn captions_are_cut_into_the_words_of_the_ptb_tokenizer() {
    let texts: Vec<Text> = fixture("words.json");
    assert!(texts.len() > 190, "{}", texts.len());
    for Text { text, words: right } in &texts {
        assert_eq!(words(text).join(" "), *right, "{text:?}");
    }
}

#[derive(Deserialize)]
struct Answer {
    answer: String,
    normalised: String,
    people: Option<Vec<String>>,
    accuracy: Option<f64>,
}

#[test]
fn answers_about_pictures_are_judged_by_the_published_rules() {
    let answers: Vec<Answer> = fixture("vqa.json");
    for case in &answers {
        assert_eq!(
            vqa::normalised(&case.answer),
            case.normalised,
            "{:?}",
            case.answer
        );
        if let (Some(people), Some(accuracy)) = (&case.people, case.accuracy) {
            near(vqa::accuracy(&case.answer, people), accuracy);
        }
    }
    let people = |yes: usize| {
        let own = |at| if at < yes { "Yes." } else { "no" }.to_owned();
        (0..10).map(own).collect::<Vec<String>>()
    };
    // Of two among ten, eight sets of nine hold both and two hold one.
    for (yes, right) in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)] {
        near(vqa::accuracy("yes", &people(yes)), right);
    }
    near(vqa::accuracy("yes", &[]), 0.0);
}

#[test]
fn the_likeliest_choice_is_the_first_of_the_largest() {
    let texts = ["ab".to_owned(), "naïve".to_owned(), "abcdefghij".to_owned()];
    assert_eq!(likeliest(&[-3.0, -2.0, -2.0]), 1);
    // -1.5, -1.2 and -1.0 per character: those of naïve are five, not six bytes.
    assert_eq!(likeliest_per_character(&[-3.0, -6.0, -10.0], &texts), 2);
    assert_eq!(likeliest_per_character(&[-2.0, -5.0, -10.0], &texts), 0);
    assert_eq!(
        likeliest(&[f64::NAN, -1.0]),
        0,
        "what is no number is not the likeliest of two"
    );
}

#[test]
fn ranks_count_what_is_likelier_and_ties_against_the_right_one() {
    let likeness = [0.1, 0.9, 0.5, 0.5];
    assert_eq!(rank(&likeness, &[1]), 1);
    assert_eq!(rank(&likeness, &[2]), 3);
    // The best of several right ones counts, and they do not stand in each other's way.
    assert_eq!(rank(&likeness, &[2, 3]), 2);
    assert_eq!(rank(&likeness, &[0, 1]), 1);
    assert_eq!(rank(&[f32::NAN, 0.5], &[0]), 2);
    assert_eq!(rank(&[f32::NAN, 0.5], &[1]), 2);
}
