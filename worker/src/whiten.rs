//! Image features whose directions are alike in strength.
//!
//! Features of a young encoder differ in a few directions and hardly in the others, so that cosine
//! similarities say little, and a head that is trained on them learns slowly in the weak ones.
//! Whitening (Su et al. 2021, arXiv 2103.15316, on sentence features) evens the directions out;
//! folded into the encoder's last projection, it costs nothing afterwards.

use mks2_proto::failure::Failure;
use tch::{Kind, Tensor};

/// Directions weaker than this share of the strongest are not stretched further.
const NOISE: f64 = 1e-9;

/// A projection `[e, v]`, row-major, whose features differ from those of `projection_ev` in this:
/// each of their directions is divided by its root mean square over `features_ne` to the power of
/// `power` (0: nothing changes; 1: all directions alike). Their mean square becomes 1.
///
/// # Errors
/// When libtorch can not decompose the features' second moments.
pub(crate) fn evened(
    projection_ev: &Tensor,
    features_ne: &Tensor,
    power: f64,
) -> Result<Vec<f32>, Failure> {
    let refused = |e: tch::TchError| {
        Failure::internal("the image features could not be evened out", e.to_string())
    };
    let compute = || -> Result<Tensor, tch::TchError> {
        let features_ne = features_ne.f_to_kind(Kind::Double)?;
        let rows = features_ne.size()[0] as f64;
        let moments_ee = features_ne
            .f_tr()?
            .f_matmul(&features_ne)?
            .f_div_scalar(rows)?;
        let (strength_e, directions_ee) = moments_ee.f_linalg_eigh("L")?;
        let floor = strength_e.f_max()?.f_double_value(&[])? * NOISE;
        let scale_e = strength_e
            .f_clamp_min(floor)?
            .f_pow_tensor_scalar(-0.5 * power)?;
        let stretch_ee = (&directions_ee * scale_e).f_matmul(&directions_ee.f_tr()?)?;
        let size = features_ne
            .f_matmul(&stretch_ee)?
            .f_square()?
            .f_mean(Kind::Double)?
            .f_double_value(&[])?
            .sqrt();
        stretch_ee
            .f_matmul(&projection_ev.f_to_kind(Kind::Double)?)?
            .f_div_scalar(size)?
            .f_to_kind(Kind::Float)
    };
    crate::objective::to_floats(&compute().map_err(refused)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::generator::normal;

    /// Inputs and a projection whose directions differ by a factor of 50 in strength.
    fn case() -> (Tensor, Tensor) {
        let inputs_nv = normal(3, &[4000, 6], Device::Cpu);
        let scale = Tensor::from_slice(&[50f32, 10.0, 2.0, 1.0]).unsqueeze(1);
        let projection_ev = normal(4, &[4, 6], Device::Cpu) * scale;
        (inputs_nv, projection_ev)
    }

    /// Strengths of the directions of what `power` makes of the case, weakest first.
    fn strengths(power: f64) -> Vec<f64> {
        let (inputs_nv, projection_ev) = case();
        let features_ne = inputs_nv.matmul(&projection_ev.tr());
        let evened = Tensor::from_slice(&evened(&projection_ev, &features_ne, power).unwrap());
        let after_ne = inputs_nv.matmul(&evened.view([4, 6]).tr());
        let moments_ee = after_ne.tr().matmul(&after_ne) / 4000.0;
        assert!((moments_ee.diag(0).mean(Kind::Float).double_value(&[]) - 1.0).abs() < 1e-3);
        Vec::try_from(moments_ee.linalg_eigh("L").0.to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn full_power_makes_all_directions_alike() {
        let found = strengths(1.0);
        assert!(found.iter().all(|s| (s - 1.0).abs() < 1e-2), "{found:?}");
    }

    #[test]
    fn half_the_power_takes_the_root_of_every_strength() {
        let (none, half) = (strengths(0.0), strengths(0.5));
        for at in 0..3 {
            let (before, after) = (none[3] / none[at], half[3] / half[at]);
            assert!(
                (after / before.sqrt() - 1.0).abs() < 1e-2,
                "{before} {after}"
            );
        }
    }
}
