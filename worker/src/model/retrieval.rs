//! The retrieval head of stage 1: text state and image feature in one space.
//!
//! ```text
//! D_ns = unit(W_t state_nd)     I_ms = unit(W_i global_me)     sim = D I^T, cosine
//! L    = -(1/N) sum_i log( exp(sim(D_i, I_i)/tau) / sum_j exp(sim(D_i, I_j)/tau) )
//! ```
//!
//! `W_i` may be left out: the text is then projected into the encoder's own space. `tau` is fixed,
//! or learned through the logarithm of its inverse and never below 0.01.

use mks2_proto::job;
use mks2_proto::params;
use tch::{Kind, Tensor};

use super::ops::{linear, unit_rows};
use super::weights::expect_shape;
use super::{ModelError, Result, States, Weights, losses};

/// One head.
#[derive(Debug)]
pub struct RetrievalHead {
    /// The block (from 1) after which it reads the text; the last one's states are normed.
    pub block: u32,
    text_sd: Tensor,
    image_se: Option<Tensor>,
    log_inverse_temperature: Tensor,
}

impl RetrievalHead {
    fn new(model: &job::Model, (block, at): (u32, String), weights: &Weights) -> Result<Self> {
        let d = i64::from(model.decoder.hidden_size);
        let e = i64::from(model.vision.projection_dim);
        let s = i64::from(model.retrieval.dim);
        let text_sd = weights.shaped(&format!("{at}.text_projection.weight"), &[s, d])?;
        let log_inverse_temperature = match model.retrieval.learn_temperature {
            true => weights.shaped(&format!("{at}.log_inverse_temperature"), &[])?,
            false => {
                let fixed = -(model.retrieval.temperature.ln());
                Tensor::full([0_i64; 0], fixed, (Kind::Float, text_sd.device()))
            }
        };
        let image_se = match model.retrieval.project_images {
            true => Some(weights.shaped(&format!("{at}.image_projection.weight"), &[s, e])?),
            false => None,
        };
        Ok(Self {
            block,
            text_sd,
            image_se,
            log_inverse_temperature,
        })
    }

    /// Text states `[n, d]` in the shared space, unit rows `[n, s]`, fp32.
    pub fn text(&self, states_nd: &Tensor) -> Tensor {
        let states_nd = states_nd.to_kind(Kind::Float);
        unit_rows(&linear(&states_nd, &self.text_sd))
    }

    /// Global image features `[m, e]` in the shared space, unit rows `[m, s]`, fp32.
    pub fn images(&self, global_me: &Tensor) -> Tensor {
        let global_me = global_me.to_kind(Kind::Float);
        match &self.image_se {
            Some(image_se) => unit_rows(&linear(&global_me, image_se)),
            None => unit_rows(&global_me),
        }
    }
}

/// All heads: the extra blocks' in ascending order, the last block's at the end.
#[derive(Debug)]
pub struct RetrievalHeads {
    heads: Vec<RetrievalHead>,
    blocks: Vec<u32>,
    image_size: i64,
}

impl RetrievalHeads {
    /// The heads `retrieval.*`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape, or an extra block does not exist.
    pub fn new(model: &job::Model, weights: &Weights) -> Result<Self> {
        let heads = params::retrieval_heads(model)
            .into_iter()
            .map(|head| RetrievalHead::new(model, head, weights))
            .collect::<Result<Vec<_>>>()?;
        let blocks: Vec<u32> = heads.iter().map(|head| head.block).collect();
        let layers = model.decoder.num_hidden_layers;
        if let Some(block) = blocks.iter().find(|block| **block == 0 || **block > layers) {
            return Err(ModelError::NoBlock {
                block: *block,
                blocks: layers as usize,
            });
        }
        Ok(Self {
            blocks: blocks[..blocks.len() - 1].to_vec(),
            heads,
            image_size: i64::from(model.vision.projection_dim),
        })
    }

    /// The blocks whose states [`Pass::after_blocks`](super::Pass::after_blocks) must return.
    pub fn extra_blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The last block's head: the one that evaluation ranks pictures with.
    pub fn last(&self) -> &RetrievalHead {
        &self.heads[self.heads.len() - 1]
    }

    /// The retrieval loss of these rows, summed over the rows and averaged over the heads;
    /// divided by the samples of the step and summed over all rows it is `L_t2i`.
    ///
    /// `states` were read at the end token alone (`[b, 1, d]`). `global_me` are the image
    /// features of the global batch, in which these rows stand from `first_row` on.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn loss_rows(&self, states: &States, global_me: &Tensor, first_row: i64) -> Result<Tensor> {
        expect_shape("global_me", global_me, &[-1, self.image_size])?;
        let mut total: Option<Tensor> = None;
        for head in &self.heads {
            let early = states
                .after_blocks
                .iter()
                .find(|(block, _)| *block == head.block);
            let states_b1d = early.map_or(&states.last_bnd, |(_, states)| states);
            expect_shape("states at the end token", states_b1d, &[-1, 1, -1])?;
            let text_bs = head.text(&states_b1d.squeeze_dim(1));
            let images_ms = head.images(global_me);
            let temperature = &head.log_inverse_temperature;
            let rows = losses::retrieval_rows(&text_bs, &images_ms, first_row, temperature);
            total = Some(match total {
                Some(total) => total + rows,
                None => rows,
            });
        }
        Ok(total.unwrap_or_default() / self.heads.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::normal;

    #[test]
    fn without_a_projection_pictures_stay_in_the_encoders_space() {
        let global_me = normal(1, &[5, 8], tch::Device::Cpu);
        let mut head = RetrievalHead {
            block: 1,
            text_sd: Tensor::zeros([8, 4], (Kind::Float, tch::Device::Cpu)),
            image_se: None,
            log_inverse_temperature: Tensor::from(0.0),
        };
        let (own, projected) = (
            head.images(&global_me),
            Tensor::eye(8, (Kind::Float, tch::Device::Cpu)),
        );
        head.image_se = Some(projected);
        let difference = (own - head.images(&global_me)).abs().max();
        assert!(difference.double_value(&[]) < 1e-6);
    }
}
