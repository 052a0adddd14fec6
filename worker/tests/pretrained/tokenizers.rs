//! Tokenizers in the layouts of the supported families give the tokens that transformers gives.

#[path = "nasty.rs"]
mod nasty;

use std::collections::BTreeMap;

use mks2_dataset::pretrained::{Folder, tokens};
use mks2_worker::text::TextEncoder;
use nasty::Digest;
use serde::Deserialize;

use super::folders;

/// Texts of one digest.
const BLOCK: usize = 100;

/// What transformers says.
#[derive(Deserialize)]
struct Expected {
    vocab_size: u32,
    /// Tokens of the first texts, without those that are put around a text.
    bare: Vec<Vec<i64>>,
    /// Of the tokens of each text, with them and without.
    digests: Vec<String>,
}

fn encoder(name: &str, vocab_size: u32) -> TextEncoder {
    let folder = folders().join("tokenizers").join(name);
    let folder = Folder::open(folder.to_str().unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let files = runtime.block_on(tokens::read(&folder)).unwrap();
    TextEncoder::pretrained(&files, vocab_size, 64).unwrap()
}

#[test]
fn ten_thousand_nasty_texts_have_the_tokens_of_transformers() {
    let json = std::fs::read(folders().join("tokenizers/tokens.json")).unwrap();
    let families: BTreeMap<String, Expected> = serde_json::from_slice(&json).unwrap();
    assert_eq!(families.len(), 4);
    let texts: Vec<String> = (0..nasty::COUNT).map(nasty::text).collect();
    for (name, expected) in families {
        let encoder = encoder(&name, expected.vocab_size);
        for (text, bare) in texts.iter().zip(&expected.bare) {
            assert_eq!(encoder.ids(text).unwrap(), *bare, "{name}: {text:?}");
        }
        let blocks = texts.chunks(BLOCK);
        assert_eq!(blocks.len(), expected.digests.len());
        for (number, (block, right)) in blocks.zip(&expected.digests).enumerate() {
            let mut digest = Digest::new();
            for text in block {
                digest.add(&encoder.published(text).unwrap());
                digest.add(&encoder.ids(text).unwrap());
            }
            assert_eq!(digest.hex(), *right, "{name}: a text of block {number}");
        }
    }
}
