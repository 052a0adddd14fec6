//! Reading a fixture, and comparing with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mks2_proto::job;
use mks2_worker::model::Weights;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Kind, Tensor};

/// Largest relative error: `max |a - b| / max |b|`, per tensor.
const TOLERANCE: f64 = 1e-5;

/// The shapes and settings of a fixture.
#[derive(Debug, Deserialize)]
#[allow(dead_code)]
pub(crate) struct Case {
    pub(crate) vocab_size: u32,
    pub(crate) job: Option<job::Job>,
    /// Files of rows, beside the fixture.
    #[serde(default)]
    pub(crate) files: Vec<String>,
    pub(crate) model: Option<job::Model>,
    pub(crate) experts: Option<job::Experts>,
    pub(crate) bootstrap: Option<job::Bootstrap>,
}

/// One file: shapes, settings and named tensors.
pub(crate) struct Fixture {
    pub(crate) case: Case,
    tensors: BTreeMap<String, Tensor>,
}

/// Where the fixtures are.
pub(crate) fn folder() -> PathBuf {
    // `cargo xtask parity` makes them afresh and says where.
    std::env::var_os("MKS2_PARITY_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        PathBuf::from,
    )
}

impl Fixture {
    pub(crate) fn load(name: &str) -> Self {
        let path = folder().join(name);
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let case = &header.metadata().as_ref().unwrap()["case"];
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::I64 => Kind::Int64,
                other => panic!("{name} is {other:?}"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
            (name, Tensor::from_data_size(view.data(), &shape, kind))
        });
        Self {
            case: serde_json::from_str(case).unwrap(),
            tensors: tensors.collect(),
        }
    }

    pub(crate) fn model(&self) -> &job::Model {
        self.case.model.as_ref().unwrap()
    }

    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("no '{name}' in fixture"))
            .shallow_clone()
    }

    pub(crate) fn input(&self, name: &str) -> Tensor {
        let input = self.get(&format!("input/{name}"));
        let wanted = self.tensors.contains_key(&format!("grad/input/{name}"));
        if wanted {
            input.set_requires_grad(true)
        } else {
            input
        }
    }

    /// All weights; those with a gradient in the fixture are leaves.
    pub(crate) fn weights(&self) -> Weights {
        let mut weights = Weights::new();
        for (name, tensor) in self.group("weight/") {
            match self.tensors.contains_key(&format!("grad/{name}")) {
                true => weights.insert_trained(name, tensor),
                false => weights.insert_frozen(name, tensor),
            }
        }
        weights
    }

    /// The tensors of a group, without its prefix.
    pub(crate) fn group<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.tensors
            .iter()
            .filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }

    pub(crate) fn check_output(&self, name: &str, ours: &Tensor) {
        assert_close(name, ours, &self.get(&format!("output/{name}")));
    }

    /// `sum of output * probe`: what the gradients of a module's fixture are of.
    pub(crate) fn probed(&self, outputs: &[(&str, &Tensor)]) -> Tensor {
        let parts = outputs.iter().map(|(name, ours)| {
            self.check_output(name, ours);
            (*ours * self.get(&format!("probe/{name}"))).sum(Kind::Float)
        });
        parts.reduce(|sum, part| sum + part).unwrap()
    }

    /// Every gradient of the fixture, and no other.
    pub(crate) fn check_gradients(
        &self,
        loss: &Tensor,
        weights: &Weights,
        inputs: &[(&str, &Tensor)],
    ) {
        let wanted: Vec<(&str, &Tensor)> = self.group("grad/").collect();
        assert!(!wanted.is_empty());
        let leaves: Vec<Tensor> = wanted
            .iter()
            .map(|(name, _)| match name.strip_prefix("input/") {
                Some(input) => inputs
                    .iter()
                    .find(|(name, _)| *name == input)
                    .unwrap()
                    .1
                    .shallow_clone(),
                None => weights.get(name).unwrap(),
            })
            .collect();
        let ours = Tensor::run_backward(&[loss], &leaves, false, false);
        for ((name, theirs), ours) in wanted.iter().zip(&ours) {
            assert!(ours.defined(), "{name} has no gradient");
            let is_of_keys = name.ends_with("k_proj.bias") || name.ends_with("key.bias");
            match name.strip_suffix("bias").filter(|_| is_of_keys) {
                // A bias of the keys shifts all scores of a query alike: its gradient is zero but
                // for rounding, at the scale of the gradient of the keys' weights.
                Some(at) => {
                    let scale = self.get(&format!("grad/{at}weight")).abs().max();
                    assert_within(name, ours, theirs, scale.double_value(&[]));
                }
                None => assert_close(name, ours, theirs),
            }
        }
    }
}

/// Refuses a relative error of 1e-5 or more.
pub(crate) fn assert_close(name: &str, ours: &Tensor, theirs: &Tensor) {
    assert_within(name, ours, theirs, theirs.abs().max().double_value(&[]));
}

fn assert_within(name: &str, ours: &Tensor, theirs: &Tensor, scale: f64) {
    assert_eq!(ours.size(), theirs.size(), "shape of {name}");
    let error = (ours - theirs).abs().max().double_value(&[]);
    assert!(
        error < TOLERANCE * scale,
        "{name}: error {error:e} at scale {scale:e}"
    );
}
