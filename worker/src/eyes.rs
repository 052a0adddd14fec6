//! What a language model sees with: the visual encoder and the bridge, both frozen.

use mks2_proto::failure::Failure;
use mks2_proto::job;
use tch::{Device, Tensor, no_grad};

use crate::model::{Bridge, Vision, Weights};
use crate::pixels::to_pixels;

/// Pictures become soft tokens.
pub(crate) struct Eyes {
    vision: Vision,
    bridge: Bridge,
    side: u32,
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
        })
    }

    /// Width and height of the pictures.
    pub(crate) fn side(&self) -> u32 {
        self.side
    }

    /// Soft tokens `[b, p, d]` of pictures in RGB bytes `[side, side, 3]`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn look(&self, pictures: &[&[u8]], device: Device) -> Result<Tensor, Failure> {
        let pixels_bcyx = to_pixels(pictures, self.side as usize, device);
        no_grad(|| {
            let seen = self.vision.forward(&pixels_bcyx)?;
            Ok(self.bridge.forward(&seen.patches_bpv)?)
        })
    }
}
