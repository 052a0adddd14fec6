//! Tensors that a folder may hold beside those of its model.

use super::config::{Described, Language};

/// Whether a tensor may stand beside those of the model: tables that follow from the configuration, as
/// older programs saved them, an output head that is tied to the embedding, and CLIP's text side. Of a
/// BLIP-2, all may whose names begin neither with `qformer.` nor with `query_tokens`, and of its Q-Former's
/// blocks the networks `intermediate` and `output`, through which texts go alone.
#[must_use]
pub fn is_extra(described: &Described, name: &str) -> bool {
    let of_decoder = |language: &Language| {
        let is_tied = language.shape.tie_word_embeddings && name == "lm_head.weight";
        is_tied || name.ends_with(".rotary_emb.inv_freq")
    };
    match described {
        Described::Decoder(language) => of_decoder(language),
        Described::Mks2(model) => of_decoder(&model.language),
        Described::Vision(_) => {
            let of_text = ["text_model.", "text_projection.", "logit_scale"];
            of_text.iter().any(|start| name.starts_with(start))
                || name == "vision_model.embeddings.position_ids"
        }
        Described::QFormer(_) => {
            let block = name.strip_prefix("qformer.encoder.layer.");
            let part = block.and_then(|block| block.split('.').nth(1));
            let is_its = name.starts_with("qformer.") || name.starts_with("query_tokens");
            !is_its || matches!(part, Some("intermediate" | "output"))
        }
    }
}
