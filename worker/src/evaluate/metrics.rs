//! Metrics as pure functions: no model, no file.
//!
//! | module | what | held against |
//! |---|---|---|
//! | [`choice`] | the likeliest of several continuations, by sum or by length | transformers' log-likelihoods |
//! | [`words`] | captions as words, as COCO's evaluation makes them | Stanford's PTBTokenizer |
//! | [`bleu`], [`rouge`], [`cider`] | captions beside several references | pycocoevalcap |
//! | [`vqa`] | answers beside those of ten people | the published rules, written a second time |
//! | [`rank`] | where the first right one stands in a search | |
//! | [`bootstrap`] | how certain a metric is, given so few items | |

pub mod bleu;
pub mod bootstrap;
pub mod choice;
pub mod cider;
mod ngrams;
pub mod rank;
pub mod rouge;
pub mod vqa;
pub mod words;

/// One picture's caption and what people wrote about it, as words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captioned {
    /// The caption under test.
    pub candidate: Vec<String>,
    /// What it is compared with; at least one.
    pub references: Vec<Vec<String>>,
}
