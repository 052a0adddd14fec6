//! A start for the retrieval head's image projection that follows the data.
//!
//! Features of a young encoder differ in a few directions and hardly in the others, so that cosine
//! similarities say little. A projection that begins by evening the directions out (a
//! data-dependent start, Krähenbühl et al. 2016, arXiv 1511.06856) lets the loss see all of them;
//! training goes on from there.

use mks2_proto::failure::Failure;
use tch::{Kind, Tensor};

/// Directions weaker than this share of the strongest are taken for noise.
const NOISE: f64 = 1e-4;

/// `[dim, e]`, row-major: the `dim` strongest directions of features `[n, e]`, each divided by its
/// root mean square to the power of `power` (0: lengths stay; 1: all directions alike).
///
/// # Errors
/// When libtorch can not decompose the features' second moments.
pub(crate) fn projection(features_ne: &Tensor, dim: i64, power: f64) -> Result<Vec<f32>, Failure> {
    let refused = |e: tch::TchError| {
        Failure::internal(
            "the retrieval head's start could not be computed",
            e.to_string(),
        )
    };
    let compute = || -> Result<Tensor, tch::TchError> {
        let features_ne = features_ne.f_to_kind(Kind::Double)?;
        let rows = features_ne.size()[0] as f64;
        let moments_ee = features_ne
            .f_tr()?
            .f_matmul(&features_ne)?
            .f_div_scalar(rows)?;
        // Ascending; the strongest directions are the last columns.
        let (strength_e, directions_ee) = moments_ee.f_linalg_eigh("L")?;
        let floor = strength_e.f_max()?.f_double_value(&[])? * NOISE;
        let width = strength_e.size()[0];
        let kept = dim.min(width);
        let scale_k = strength_e
            .f_narrow(0, width - kept, kept)?
            .f_clamp_min(floor)?
            .f_pow_tensor_scalar(-0.5 * power)?;
        let rows_ke =
            directions_ee.f_narrow(1, width - kept, kept)?.f_tr()? * scale_k.f_unsqueeze(1)?;
        // As large as a fresh linear layer's, so that the optimizer's steps mean the same.
        let size = rows_ke
            .f_square()?
            .f_mean(Kind::Double)?
            .f_double_value(&[])?
            .sqrt();
        rows_ke
            .f_mul_scalar(1.0 / (size * (3.0 * width as f64).sqrt()))?
            .f_to_kind(Kind::Float)
    };
    crate::objective::to_floats(&compute().map_err(refused)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Features whose directions differ by a factor of 50 in strength.
    fn features() -> Tensor {
        tch::manual_seed(3);
        let scale = Tensor::from_slice(&[50f32, 10.0, 2.0, 1.0]);
        Tensor::randn([4000, 4], (Kind::Float, tch::Device::Cpu)) * scale
    }

    #[test]
    fn full_power_makes_all_directions_alike() {
        let features = features();
        let weights = Tensor::from_slice(&projection(&features, 4, 1.0).unwrap()).view([4, 4]);
        let spread =
            features
                .linear(&weights, None::<Tensor>)
                .std_dim([0i64].as_slice(), false, false);
        let (least, most) = (
            spread.min().double_value(&[]),
            spread.max().double_value(&[]),
        );
        assert!(most / least < 1.1, "{least} .. {most}");
    }

    #[test]
    fn no_power_turns_without_stretching_and_fewer_rows_keep_the_strongest() {
        let features = features();
        let weights = Tensor::from_slice(&projection(&features, 2, 0.0).unwrap()).view([2, 4]);
        let gram = weights.matmul(&weights.tr());
        assert!((gram.double_value(&[0, 0]) / gram.double_value(&[1, 1]) - 1.0).abs() < 1e-4);
        assert!(gram.double_value(&[0, 1]).abs() < 1e-5);
        let strongest = weights.abs().argmax(1, false);
        assert_eq!(Vec::<i64>::try_from(strongest).unwrap(), [1, 0]);
    }
}
