//! Weights by their global names.

#[cfg(test)]
mod tests;
mod together;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use mks2_proto::job::Precision;
use mks2_proto::params::{ParamSpec, follows_precision};
use tch::{Device, Kind, Tensor};

use super::{ModelError, Result};
pub(crate) use together::group_of;
use together::{Member, together};

/// Name -> tensor. Tensors are handles: copies share storage.
#[derive(Debug)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
    /// What models over these weights compute in.
    kind: Kind,
    /// What the parts of a model have made of frozen weights and read instead of them; shared with
    /// copies.
    derived: Rc<RefCell<Vec<Tensor>>>,
    /// They are files: nothing is copied only to lie side by side.
    are_files: bool,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            tensors: BTreeMap::new(),
            kind: Kind::Float,
            derived: Rc::default(),
            are_files: false,
        }
    }
}

impl Clone for Weights {
    fn clone(&self) -> Self {
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        Self {
            tensors: tensors.collect(),
            kind: self.kind,
            derived: Rc::clone(&self.derived),
            are_files: self.are_files,
        }
    }
}

impl Weights {
    /// No weights, to compute in fp32.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, which lie in files: what these have apart stays apart.
    #[must_use]
    pub(crate) fn in_files(self) -> Self {
        Self {
            are_files: true,
            ..self
        }
    }

    /// The same for models that compute in `precision` on `device`. Frozen weights are copied where they are
    /// elsewhere or matrices of another kind, so that those which read the same input lie together. What is
    /// trained stays in fp32; so do vectors, which weigh nothing, and the matrices that are only ever applied
    /// in fp32.
    #[must_use]
    pub fn computing_in(self, (precision, device): (Precision, Device)) -> Self {
        let kind = kind_of(precision);
        let wanted = |name: &str, tensor: &Tensor| match follows_precision(name, tensor.dim()) {
            true => kind,
            false => tensor.kind(),
        };
        Self {
            kind,
            ..self.moved(wanted, device, false)
        }
    }

    /// A copy on the host, in memory of its own, for later stages to compute from: a device has only what its
    /// model reads.
    #[must_use]
    pub(crate) fn kept(self) -> Self {
        self.moved(|_, tensor| tensor.kind(), Device::Cpu, true)
    }

    fn moved(self, kind: impl Fn(&str, &Tensor) -> Kind, device: Device, anew: bool) -> Self {
        let tensors = self.tensors.into_iter();
        let (mut trained, frozen): (BTreeMap<_, _>, Vec<_>) = {
            let (trained, frozen): (Vec<_>, Vec<_>) =
                tensors.partition(|(_, tensor)| tensor.requires_grad());
            (trained.into_iter().collect(), frozen)
        };
        let member = |(name, tensor): (String, Tensor)| Member {
            kind: kind(&name, &tensor),
            name,
            tensor,
        };
        trained.extend(together(frozen.into_iter().map(member), device, anew));
        Self {
            tensors: trained,
            ..self
        }
    }

    /// What models over these weights compute in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The initial values of `specs` on `device`, frozen.
    pub fn initial(specs: &[ParamSpec], seed: u64, device: Device) -> Self {
        let mut weights = Self::new();
        for spec in specs {
            let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
            let values = Tensor::from_slice(&spec.initial_values(seed)).view(shape.as_slice());
            weights.insert_frozen(&spec.name, &values.to_device(device));
        }
        weights
    }

    /// Adds a weight that gets no gradient. It shares `tensor`'s storage.
    pub fn insert_frozen(&mut self, name: &str, tensor: &Tensor) {
        self.tensors.insert(name.to_owned(), tensor.detach());
    }

    /// Adds a leaf that gets a gradient. It shares `tensor`'s storage, so it sees updates of a
    /// flat buffer that `tensor` is a view of.
    pub fn insert_trained(&mut self, name: &str, tensor: &Tensor) {
        self.tensors
            .insert(name.to_owned(), tensor.detach().set_requires_grad(true));
    }

    /// Adds all of `other`'s weights; they win over those of the same name.
    pub fn extend(&mut self, other: Self) {
        self.tensors.extend(other.tensors);
    }

    /// Whether there is a weight of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The weight called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor.shallow_clone()),
            None => Err(ModelError::Missing {
                name: name.to_owned(),
            }),
        }
    }

    /// The weight called `name`, of shape `shape`.
    ///
    /// # Errors
    /// If there is none or its shape differs.
    pub fn shaped(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.get(name)?;
        expect_shape(name, &tensor, shape)?;
        Ok(tensor)
    }

    /// Everything that a model over these weights reads and that is not trained: the frozen weights
    /// by name, and what was derived from them.
    #[must_use]
    pub fn frozen(&self) -> Vec<Tensor> {
        let named = self
            .tensors
            .values()
            .filter(|weight| !weight.requires_grad());
        let derived = self.derived.borrow();
        let all = named.chain(derived.iter());
        all.map(Tensor::shallow_clone).collect()
    }

    /// Notes that a model reads this, which was made of frozen weights.
    pub(super) fn derive(&self, tensor: &Tensor) {
        self.derived.borrow_mut().push(tensor.shallow_clone());
    }

    /// One matrix out of several that read the same input, when none of them is trained: one large
    /// product instead of small ones. The parts are stacked along the outputs; where they lie so in memory,
    /// it is a view of it. None where files have them apart.
    pub(super) fn fused(&self, parts: &[&Tensor]) -> Option<Tensor> {
        if parts.iter().any(|part| part.requires_grad()) {
            return None;
        }
        // Noted in both cases: whoever compares copies counts the same tensors, wherever they lie.
        let stacked = || (!self.are_files).then(|| Tensor::cat(parts, 0));
        let fused = side_by_side(parts).or_else(stacked)?;
        self.derive(&fused);
        Some(fused)
    }

    /// The leaves of `specs`, in their order: what gradients are asked for.
    ///
    /// # Errors
    /// If one is missing.
    pub fn leaves(&self, specs: &[ParamSpec]) -> Result<Vec<Tensor>> {
        specs.iter().map(|spec| self.get(&spec.name)).collect()
    }
}

/// The parts as one, if each begins in memory where the one before it ends.
fn side_by_side(parts: &[&Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    let (kind, device) = (first.kind(), first.device());
    let mut end = first.data_ptr() as usize;
    for part in parts {
        let is_next = part.data_ptr() as usize == end;
        if !is_next || part.kind() != kind || part.device() != device || !part.is_contiguous() {
            return None;
        }
        end += part.numel() * kind.elt_size_in_bytes();
    }
    let mut size = first.size();
    size[0] = parts.iter().map(|part| part.size()[0]).sum();
    // Refused where they are neighbours by chance, each in a memory of its own.
    first.f_as_strided(&size, first.stride(), None).ok()
}

/// The kind of a precision's numbers.
pub fn kind_of(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// Refuses a tensor whose shape is not `expected`, where -1 stands for any size.
pub(super) fn expect_shape(name: &str, tensor: &Tensor, expected: &[i64]) -> Result<()> {
    let found = tensor.size();
    let fits = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(size, wanted)| *wanted == -1 || size == wanted);
    if fits {
        return Ok(());
    }
    Err(ModelError::Shape {
        name: name.to_owned(),
        found,
        expected: expected.to_vec(),
    })
}

/// The options of a new tensor beside `like`.
pub(super) fn options(kind: Kind, like: &Tensor) -> (Kind, Device) {
    (kind, like.device())
}
