//! libtorch's random numbers. A process has one generator for each device, and whoever seeds it can count on
//! what comes next only as long as nobody else draws.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

static TAKEN: Mutex<()> = Mutex::new(());

/// What `draws` gives with generators that begin at `seed`; meanwhile nobody else seeds them. It must not call this
/// function again.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that may seed the generators"
)]
pub(crate) fn seeded<T>(seed: i64, draws: impl FnOnce() -> T) -> T {
    let _alone = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    draws()
}

/// Numbers of the standard normal distribution, in fp32, the same for the same seed.
#[expect(
    clippy::disallowed_methods,
    reason = "the generator is this function's alone"
)]
pub(crate) fn normal(seed: i64, shape: &[i64], device: Device) -> Tensor {
    seeded(seed, || Tensor::randn(shape, (Kind::Float, device)))
}

/// Whole numbers from 0 to below `end`, the same for the same seed.
#[expect(
    clippy::disallowed_methods,
    reason = "the generator is this function's alone"
)]
pub(crate) fn below(seed: i64, end: i64, shape: &[i64], device: Device) -> Tensor {
    seeded(seed, || Tensor::randint(end, shape, (Kind::Int64, device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_what_is_drawn_whoever_draws_meanwhile() {
        let draw = |seed| {
            seeded(seed, || {
                let parts = [0.5, 0.3].map(|p| {
                    let ones = Tensor::ones([4096], (Kind::Float, Device::Cpu));
                    std::thread::yield_now();
                    ones.dropout(p, true)
                });
                Tensor::cat(&parts, 0)
            })
        };
        let alone = draw(3);
        assert!(!alone.equal(&draw(4)));
        std::thread::scope(|scope| {
            for other in 0..2 {
                scope.spawn(move || (0..200).for_each(|seed| drop(draw(other * 1000 + seed))));
            }
            for _ in 0..200 {
                assert!(draw(3).equal(&alone));
            }
        });
    }
}
