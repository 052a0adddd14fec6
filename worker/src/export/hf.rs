//! A folder that transformers reads.

use std::path::Path;

use mks2_dataset::pretrained::config::{self, About, Described};
use mks2_dataset::row::{Row, render};
use mks2_proto::export::{Dtype, Written};
use mks2_proto::failure::Failure;
use serde_json::{Value, json};

use super::assemble::Assembled;
use super::{put, put_json, shards};
use crate::pixels;
use crate::text::TextEncoder;
use crate::trained::{Half, TrainedModel};

/// The architecture, for transformers.
const MODELING: &[u8] = include_bytes!("modeling_mks2.py");
/// What stands for a question where its template is taken apart.
const QUESTION: &str = "\u{0}";

/// Writes a model; files have at most so many bytes.
pub(super) fn write(
    trained: &TrainedModel,
    merge: bool,
    (dtype, most): (Dtype, u64),
    folder: &Path,
) -> Result<Written, Failure> {
    let model = Assembled::of(trained, merge)?;
    let encoder = &*trained.encoder;
    let about = About {
        dtype: dtype.of_pytorch(),
        begin: begin(encoder),
        end: encoder.end(),
        pad: encoder.padding(),
    };
    let described = config::write(&model.described, &about);
    put_json(folder, config::FILE_NAME, &described)?;
    let generation = generation(encoder, &about);
    put_json(folder, "generation_config.json", &generation)?;
    put(folder, "tokenizer.json", &encoder.presenting_json()?)?;
    put_json(folder, "tokenizer_config.json", &tokenizer(trained))?;
    if matches!(model.described, Described::Mks2(_)) {
        put(folder, "modeling_mks2.py", MODELING)?;
        if trained.sees() {
            let processor = processor(trained.model.vision.image_size);
            put_json(folder, "preprocessor_config.json", &processor)?;
        }
    }
    let sizes = shards::write(&model.tensors, (dtype, most), folder)?;
    let architecture = described["architectures"][0].as_str().unwrap_or_default();
    Ok(Written {
        what: format!("{architecture} in {}", dtype.of_pytorch()),
        parameters: sizes.bytes / dtype.bytes(),
        bytes: sizes.bytes,
        files: sizes.files,
        id: None,
        without: None,
    })
}

/// The one token that opens a text, where it is none that ends it.
fn begin(encoder: &TextEncoder) -> Option<i64> {
    match encoder.opening() {
        [begin] if *begin != encoder.end() => Some(*begin),
        _ => None,
    }
}

/// `generation_config.json`: an answer ends there where it does here.
fn generation(encoder: &TextEncoder, about: &About) -> Value {
    json!({
        "bos_token_id": about.begin,
        "eos_token_id": match encoder.ends().as_slice() {
            [end] => json!(end),
            ends => json!(ends),
        },
        "pad_token_id": about.pad,
    })
}

/// `tokenizer_config.json`
fn tokenizer(trained: &TrainedModel) -> Value {
    let encoder = &*trained.encoder;
    let mut settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin(encoder).and_then(|id| encoder.entry(id)),
        "eos_token": encoder.entry(encoder.end()),
        "pad_token": encoder.entry(encoder.padding()),
        "model_max_length": trained.positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": false,
    });
    if let Some(template) = chat_template(trained) {
        settings["chat_template"] = template.into();
    }
    settings
}

/// How one question becomes a prompt, as in training; none where that takes more than the question.
fn chat_template(trained: &TrainedModel) -> Option<String> {
    let Half::Experts(settings) = &trained.half else {
        return None;
    };
    let encoder = &*trained.encoder;
    let row = Row {
        question: Some(QUESTION.to_owned()),
        ..Row::default()
    };
    let asked = render(&settings.question, &row).ok()?;
    let opening = encoder.opening().iter();
    let opening: Option<String> = opening.map(|id| encoder.entry(*id)).collect();
    let closing = match settings.answer_after_end {
        true => encoder.entry(encoder.end())?,
        false => String::new(),
    };
    let whole = format!("{}{asked}{closing}", opening?);
    // What is in quotes in JSON is so in Jinja.
    let parts = whole.split(QUESTION).map(|part| json!(part).to_string());
    let parts: Vec<String> = parts.collect();
    let refusal = "this model was trained to answer one question at a time";
    Some(format!(
        "{{% if messages | length != 1 %}}{{{{ raise_exception(\"{refusal}\") }}}}{{% endif %}}\
         {{{{ {} }}}}",
        parts.join(" + messages[0][\"content\"] + ")
    ))
}

/// `preprocessor_config.json`: how pictures become pixels.
fn processor(side: u32) -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": true,
        "crop_size": {"height": side, "width": side},
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": pixels::MEAN,
        "image_std": pixels::STD,
    })
}

#[cfg(test)]
mod tests {
    use mks2_dataset::pretrained::tokens::{EndToken, Overrides, TokenizerFiles};

    use super::*;

    #[test]
    fn answers_end_there_with_every_token_that_ends_them_here() {
        let own = TextEncoder::train(&["a text".to_owned()], 300, 16).expect("trained");
        let written = |other_ends: &[u32]| {
            let files = TokenizerFiles {
                begin: None,
                json: own.to_json().expect("JSON").into(),
                end: EndToken::Numbered(2),
                other_ends: other_ends.to_vec(),
                overrides: Overrides::default(),
            };
            let encoder = TextEncoder::pretrained(&files, 300, 16).expect("it fits");
            let about = About {
                dtype: "float32",
                begin: begin(&encoder),
                end: encoder.end(),
                pad: encoder.padding(),
            };
            generation(&encoder, &about)["eos_token_id"].clone()
        };
        assert_eq!(written(&[]), json!(2));
        // As published: the end of a text among those of a turn.
        assert_eq!(written(&[7, 2, 9, 7]), json!([2, 7, 9]));
    }
}
