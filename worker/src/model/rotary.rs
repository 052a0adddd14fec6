//! Rotary positions (Su et al. 2021), halves paired as Hugging Face does.
//!
//! ```text
//! x_i, x_{i+k/2} turned by the angle position * f_i      f_i = theta^(-2i/k)
//! linear  f_i / factor
//! llama3  wavelength w_i = 2 pi / f_i, o positions of the first training:
//!         f_i           where w_i < o / high         high frequencies stay
//!         f_i / factor  where w_i > o / low          low ones are stretched
//!         between: (1 - s) f_i / factor + s f_i,     s = (o / w_i - low) / (high - low)
//! ```

use std::f64::consts::TAU;

use mks2_proto::job::{RopeScaling, RopeType};
use tch::{Device, Kind, Tensor};

/// How fast positions turn.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    /// Base of the frequencies.
    pub(super) theta: f64,
    /// How they are changed.
    pub(super) scaling: Option<RopeScaling>,
}

/// Rotary tables that broadcast over `[b, length, heads, k]`.
#[derive(Debug)]
pub(super) struct Rotary {
    cos: Tensor,
    sin_signed: Tensor,
}

impl Rotary {
    /// Tables of the positions `0 .. length`, `[1, length, 1, k]`, for heads of `k` elements.
    pub(super) fn new(length: i64, head: i64, turns: &Turns, device: Device) -> Self {
        let options = (Kind::Float, device);
        let exponents = Tensor::arange_start_step(0, head, 2, (Kind::Int64, device))
            .to_kind(Kind::Float)
            / head as f64;
        let frequencies = Tensor::full([1], turns.theta, options)
            .pow(&exponents)
            .reciprocal();
        let frequencies = match &turns.scaling {
            None => frequencies,
            Some(scaling) => scaled(&frequencies, scaling),
        };
        let angles = Tensor::arange(length, options).unsqueeze(1) * frequencies.unsqueeze(0);
        let (cos, sin) = (angles.cos(), angles.sin());
        let shape = [1, length, 1, head];
        Self {
            cos: Tensor::cat(&[&cos, &cos], 1).view(shape),
            sin_signed: Tensor::cat(&[&sin.neg(), &sin], 1).view(shape),
        }
    }

    /// The tables of `length` positions from `start` on.
    pub(super) fn narrow(&self, start: i64, length: i64) -> Self {
        let part = |table: &Tensor| table.narrow(1, start, length);
        Self {
            cos: part(&self.cos),
            sin_signed: part(&self.sin_signed),
        }
    }

    /// The tables of `positions_bn`, `[b, n, 1, k]`.
    pub(super) fn at(&self, positions_bn: &Tensor) -> Self {
        let size = positions_bn.size();
        let flat = positions_bn.flatten(0, -1);
        let part = |table: &Tensor| table.index_select(1, &flat).view([size[0], size[1], 1, -1]);
        Self {
            cos: part(&self.cos),
            sin_signed: part(&self.sin_signed),
        }
    }

    /// Turns `x`, `[b, length, heads, k]`. With the sign kept in the sine's table, exchanging
    /// the halves of a head is a roll.
    pub(super) fn turn(&self, x: &Tensor) -> Tensor {
        let half = x.size()[3] / 2;
        let [cos, sin] = [&self.cos, &self.sin_signed].map(|table| table.to_kind(x.kind()));
        (x * cos).addcmul(&x.roll([half], [3]), &sin)
    }
}

fn scaled(frequencies: &Tensor, scaling: &RopeScaling) -> Tensor {
    let stretched = frequencies / scaling.factor;
    if scaling.rope_type == RopeType::Linear {
        return stretched;
    }
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    let original = f64::from(scaling.original_max_position_embeddings);
    // Operation by operation as transformers does: a last bit grows with the position.
    let wavelengths = frequencies.full_like(TAU) / frequencies;
    let share = (wavelengths.full_like(original) / &wavelengths - low) / (high - low);
    let between = (share.ones_like() - &share) * &stretched + &share * frequencies;
    let is_low = wavelengths.gt(original / low);
    let is_high = wavelengths.lt(original / high);
    let is_between = is_low.logical_or(&is_high).logical_not();
    let others = between.where_self(&is_between, frequencies);
    stretched.where_self(&is_low, &others)
}
