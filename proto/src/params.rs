//! The parameter table of the model: names, shapes and initial values, without tensors.
//!
//! Names are those of Hugging Face's `LlamaForCausalLM` and `CLIPVisionModelWithProjection`
//! wherever these have the module; see [`specs`](decoder) for the rest. Matrices are stored
//! `[out, in]`, as there.
//!
//! Initial values follow from `(seed, name)` alone, computed with integer arithmetic and the
//! IEEE operations that every machine rounds alike, so that all workers, today and on another
//! platform, start from the same bits without exchanging them.

mod cost;
mod count;
mod draw;
mod q_former;
mod specs;

pub use cost::{LOGITS_AT_ONCE, SampleCost, sample_cost};
pub use count::{ModuleCount, module_counts};
pub use q_former::q_former;
pub use specs::{
    RESERVED_EXPERT_NAMES, bridge, decoder, experts, frozen_by, memory, retrieval, retrieval_heads,
    text_tower, trained_by, vision,
};

/// How a parameter starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// All the same value.
    Constant(f32),
    /// These values, in row-major order; as many as the parameter has.
    Values(Vec<f32>),
    /// Independent draws from a normal distribution around zero.
    Normal {
        /// Standard deviation.
        std: f32,
    },
}

/// One parameter: its global name, its shape and how it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Global name, unique in a job.
    pub name: String,
    /// Sizes, row-major; empty for a scalar.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
}

impl ParamSpec {
    /// A parameter called `name`.
    pub fn new(name: impl Into<String>, shape: &[usize], init: Init) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            init,
        }
    }

    /// Number of elements; 1 for a scalar.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether weight decay applies: to matrices (and kernels), never to norms, biases, the
    /// class embedding or a temperature.
    pub fn is_decayed(&self) -> bool {
        self.shape.len() >= 2
    }

    /// The initial values, row-major.
    pub fn initial_values(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.numel()];
        self.fill(seed, &mut values);
        values
    }

    /// Writes the initial values into `out`, row-major. A slice longer or shorter than
    /// [`numel`](Self::numel) gets as many values as fit.
    pub fn fill(&self, seed: u64, out: &mut [f32]) {
        match &self.init {
            Init::Zeros => out.fill(0.0),
            Init::Ones => out.fill(1.0),
            Init::Constant(value) => out.fill(*value),
            Init::Values(values) => {
                out.iter_mut()
                    .zip(values)
                    .for_each(|(slot, value)| *slot = *value);
            }
            Init::Normal { std } => draw::normal(draw::key(seed, &self.name), f64::from(*std), out),
        }
    }
}

/// Whether a frozen weight of so many dimensions is kept in what the model computes in.
#[must_use]
pub fn follows_precision(name: &str, dimensions: usize) -> bool {
    let is_exact = name.starts_with("retrieval.") || name.contains(".router.");
    dimensions >= 2 && !is_exact
}

/// Number of elements of all `specs` together.
pub fn numel(specs: &[ParamSpec]) -> u64 {
    specs.iter().map(|spec| spec.numel() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_from_seed_and_name_alone() {
        let spec = |name: &str| ParamSpec::new(name, &[3, 5], Init::Normal { std: 0.5 });
        assert_eq!(spec("a").initial_values(1), spec("a").initial_values(1));
        assert_ne!(spec("a").initial_values(1), spec("a").initial_values(2));
        assert_ne!(spec("a").initial_values(1), spec("b").initial_values(1));
    }

    #[test]
    fn constants_fill_the_whole_parameter() {
        let values = |init| ParamSpec::new("x", &[2], init).initial_values(0);
        assert_eq!(values(Init::Zeros), [0.0, 0.0]);
        assert_eq!(values(Init::Ones), [1.0, 1.0]);
        assert_eq!(values(Init::Constant(2.5)), [2.5, 2.5]);
        assert_eq!(values(Init::Values(vec![1.0, -1.0])), [1.0, -1.0]);
    }

    #[test]
    fn a_scalar_has_one_element_and_no_decay() {
        let scalar = ParamSpec::new("t", &[], Init::Constant(3.0));
        assert_eq!((scalar.numel(), scalar.is_decayed()), (1, false));
        assert_eq!(scalar.initial_values(0), [3.0]);
    }

    #[test]
    fn gain_scales_the_first_layer_of_a_memory_alone() {
        let job: crate::job::Job = toml::from_str(include_str!("job/sample.toml")).unwrap();
        let mut louder = job.model.clone();
        louder.memory.gain = 3.0;
        for (plain, scaled) in memory(&job.model, "m").iter().zip(memory(&louder, "m")) {
            let factor = if plain.name.contains("down_proj") {
                1.0
            } else {
                3.0
            };
            let (a, b) = (plain.initial_values(1)[0], scaled.initial_values(1)[0]);
            assert!((b / a - factor).abs() < 1e-4, "{}: {a} {b}", plain.name);
        }
    }
}
