//! What a language model sees with: the visual encoder and the bridge, both frozen.

use mks2_proto::failure::Failure;
use mks2_proto::job;
use tch::{Device, Tensor, no_grad};

use crate::model::{Bridge, Vision, VisionFeatures, Weights};
use crate::pixels::to_pixels;

/// Pictures become soft tokens.
pub(crate) struct Eyes {
    vision: Vision,
    bridge: Bridge,
    side: u32,
    tokens: i64,
}

impl Eyes {
    /// The encoder and the bridge among `weights`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub(crate) fn new(model: &job::Model, weights: &Weights) -> Result<Self, Failure> {
        Ok(Self {
            vision: Vision::new(&model.vision, weights)?,
            bridge: Bridge::new(model, weights)?,
            side: model.vision.image_size,
            tokens: i64::from(model.soft_tokens()),
        })
    }

    /// Width and height of the pictures.
    pub(crate) fn side(&self) -> u32 {
        self.side
    }

    /// Soft tokens of a picture.
    pub(crate) fn tokens(&self) -> i64 {
        self.tokens
    }

    /// What the encoder makes of pictures in RGB bytes `[side, side, 3]`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn see(
        &self,
        pictures: &[&[u8]],
        device: Device,
    ) -> Result<VisionFeatures, Failure> {
        let pixels_bcyx = to_pixels(pictures, self.side as usize, device);
        Ok(no_grad(|| self.vision.forward(&pixels_bcyx))?)
    }

    /// The soft tokens `[b, p, d]` of what was seen.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn soft(&self, seen: &VisionFeatures) -> Result<Tensor, Failure> {
        Ok(no_grad(|| self.bridge.forward(&seen.patches_bpv))?)
    }

    /// Soft tokens `[b, p, d]` of pictures in RGB bytes `[side, side, 3]`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn look(&self, pictures: &[&[u8]], device: Device) -> Result<Tensor, Failure> {
        self.soft(&self.see(pictures, device)?)
    }
}
