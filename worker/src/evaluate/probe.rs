//! Linear probes: what a feature knows, read by the simplest reader there is.

use tch::{Kind, Tensor};

/// Full-batch steps of the probe.
const STEPS: usize = 300;
/// Learning rate of its Adam.
const LR: f64 = 0.03;
/// Pull of its weights towards zero.
const WEIGHT_DECAY: f64 = 0.02;

/// Accuracy on held-out rows of a multinomial logistic regression fitted on the training rows.
///
/// Features `[n, d]` are standardised by the training rows' mean and deviation; labels `[n]` are
/// class numbers below `classes`. Starts from zero weights, so there is no chance in it.
pub(super) fn linear_probe(
    train: (&Tensor, &Tensor),
    test: (&Tensor, &Tensor),
    classes: i64,
) -> f64 {
    let (train_nd, test_nd) = standardised(train.0, test.0);
    let width = train_nd.size()[1];
    let options = (Kind::Float, train_nd.device());
    let weight_cd = Tensor::zeros([classes, width], options).set_requires_grad(true);
    let bias_c = Tensor::zeros([classes], options).set_requires_grad(true);
    let mut fit = Adam::new(&[&weight_cd, &bias_c]);
    for _ in 0..STEPS {
        let loss = train_nd
            .linear(&weight_cd, Some(&bias_c))
            .cross_entropy_for_logits(train.1)
            + weight_cd.square().sum(Kind::Float) * (WEIGHT_DECAY / 2.0);
        fit.step(&loss);
    }
    let guesses = test_nd.linear(&weight_cd, Some(&bias_c)).argmax(-1, false);
    guesses
        .eq_tensor(test.1)
        .to_kind(Kind::Double)
        .mean(Kind::Double)
        .double_value(&[])
}

fn standardised(train_nd: &Tensor, test_nd: &Tensor) -> (Tensor, Tensor) {
    let mean_d = train_nd.mean_dim([0i64].as_slice(), true, Kind::Float);
    let std_d = train_nd
        .std_dim([0i64].as_slice(), false, true)
        .clamp_min(1e-6);
    let apply = |x: &Tensor| ((x - &mean_d) / &std_d).detach();
    (apply(train_nd), apply(test_nd))
}

/// Adam (Kingma and Ba 2015) for the two small tensors of a probe.
struct Adam<'a> {
    weights: Vec<&'a Tensor>,
    moments: Vec<(Tensor, Tensor)>,
    steps: i32,
}

impl<'a> Adam<'a> {
    fn new(weights: &[&'a Tensor]) -> Self {
        let moments = weights
            .iter()
            .map(|w| (w.zeros_like(), w.zeros_like()))
            .collect();
        Self {
            weights: weights.to_vec(),
            moments,
            steps: 0,
        }
    }

    fn step(&mut self, loss: &Tensor) {
        let gradients = Tensor::run_backward(&[loss], &self.weights, false, false);
        self.steps += 1;
        let (c1, c2) = (
            1.0 - 0.9f64.powi(self.steps),
            1.0 - 0.999f64.powi(self.steps),
        );
        tch::no_grad(|| {
            for ((weight, gradient), (m, v)) in
                self.weights.iter().zip(&gradients).zip(&mut self.moments)
            {
                *m = &*m * 0.9 + gradient * 0.1;
                *v = &*v * 0.999 + gradient.square() * 0.001;
                let update = (&*m / c1) / ((&*v / c2).sqrt() + 1e-8) * LR;
                let _ = weight.shallow_clone().g_sub_(&update);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::generator::{below, normal};

    #[test]
    fn finds_a_class_that_is_linear_in_the_feature_and_nothing_in_noise() {
        let x = normal(5, &[400, 6], Device::Cpu);
        let linear = x.narrow(1, 0, 3).argmax(-1, false);
        let noise = below(6, 3, &[400], Device::Cpu);
        let split = |t: &Tensor| (t.narrow(0, 0, 300), t.narrow(0, 300, 100));
        let accuracy = |y: &Tensor| {
            let ((a, b), (ya, yb)) = (split(&x), split(y));
            linear_probe((&a, &ya), (&b, &yb), 3)
        };
        assert!(accuracy(&linear) > 0.85, "{}", accuracy(&linear));
        assert!(accuracy(&noise) < 0.5, "{}", accuracy(&noise));
    }
}
