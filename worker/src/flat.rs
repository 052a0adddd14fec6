//! Flat buffers: every trainable tensor of a stage, end to end in one fp32 buffer.
//!
//! [`FlatLayout`] is pure arithmetic: which name lives where. Matrices, which get weight decay, come
//! first, then vectors and scalars; inside both groups names are in ascending order and every
//! tensor starts on 64 bytes. [`FlatState`] holds the four buffers of that layout (weights,
//! gradients and the two moments of AdamW) on one device. Reduction, clipping, the optimizer,
//! checkpoints and digests work on whole buffers; the model sees views.
//!
//! Invariants: (1) the layout depends on names and shapes alone; (2) padding is zero and stays zero;
//! (3) a view shares storage with its buffer; (4) weights and moments that are lent to another thread
//! do not change: whoever writes them waits with [`FlatState::wait_for_readers`].

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Duration;

use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::params::ParamSpec;
use tch::{Device, Kind, Tensor, no_grad};
use thiserror::Error;

mod loan;
mod memory;

pub use loan::Lent;
use loan::Loans;
pub(crate) use memory::{bytes, bytes_mut, le_bytes, le_bytes_mut};
pub use memory::{f32_slice, f32_slice_mut, i64_slice, i64_slice_mut};

/// Elements of 64 bytes of fp32: every tensor starts on a multiple of it.
pub const ALIGN_ELEMENTS: usize = 16;

/// What can be wrong with a layout or with values for it.
#[derive(Debug, Error)]
pub enum FlatError {
    /// Two parameters have the same name.
    #[error("parameter '{0}' appears twice")]
    Duplicate(String),
    /// No parameter has this name.
    #[error("there is no trainable parameter '{0}'")]
    Unknown(String),
    /// Values of another length than the parameter's.
    #[error("'{name}' holds {expected} values, {found} were given")]
    Length {
        /// The parameter, or the whole buffer.
        name: String,
        /// Elements of the parameter.
        expected: usize,
        /// Elements that were given.
        found: usize,
    },
    /// A tensor whose memory can not be read in place.
    #[error("a contiguous {expected:?} tensor on the CPU is needed, this one is {found}")]
    Memory {
        /// The kind that was asked for.
        expected: Kind,
        /// Kind, device and shape of the tensor.
        found: String,
    },
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

impl From<FlatError> for Failure {
    fn from(error: FlatError) -> Self {
        Self::new(
            ExitCode::Internal,
            "the buffers of the trained parameters can not be used",
            error.to_string(),
            "report this with the job file and the worker's log",
        )
    }
}

/// Where one parameter lives, in elements from the beginning of each buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Global name.
    pub name: String,
    /// Shape; empty for a scalar.
    pub shape: Vec<i64>,
    /// First element.
    pub offset: usize,
    /// Elements, without the padding that follows.
    pub len: usize,
    /// Whether weight decay applies: two dimensions or more.
    pub decay: bool,
}

impl Span {
    /// The elements of this parameter.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// The order and places of all trainable parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    spans: Vec<Span>,
    index: HashMap<String, usize>,
    decay_end: usize,
    total: usize,
}

impl FlatLayout {
    /// Lays out `specs`, given in any order.
    ///
    /// # Errors
    /// [`FlatError::Duplicate`] when a name appears twice.
    pub fn new(specs: &[ParamSpec]) -> Result<Self, FlatError> {
        let mut ordered: Vec<&ParamSpec> = specs.iter().collect();
        ordered.sort_by(|a, b| (a.shape.len() < 2, &a.name).cmp(&(b.shape.len() < 2, &b.name)));
        let mut layout = Self {
            spans: Vec::new(),
            index: HashMap::new(),
            decay_end: 0,
            total: 0,
        };
        for spec in ordered {
            layout.push(spec)?;
        }
        Ok(layout)
    }

    fn push(&mut self, spec: &ParamSpec) -> Result<(), FlatError> {
        let len = spec.shape.iter().product::<usize>();
        let decay = spec.shape.len() >= 2;
        if self
            .index
            .insert(spec.name.clone(), self.spans.len())
            .is_some()
        {
            return Err(FlatError::Duplicate(spec.name.clone()));
        }
        self.spans.push(Span {
            name: spec.name.clone(),
            shape: spec.shape.iter().map(|&side| side as i64).collect(),
            offset: self.total,
            len,
            decay,
        });
        self.total += len.next_multiple_of(ALIGN_ELEMENTS);
        if decay {
            self.decay_end = self.total;
        }
        Ok(())
    }

    /// All parameters in the order of the buffers: the order of "gradients in layout order".
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The place of one parameter.
    #[must_use]
    pub fn span(&self, name: &str) -> Option<&Span> {
        self.index.get(name).map(|&at| &self.spans[at])
    }

    /// Elements of each buffer, padding included.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Trained parameters, padding not counted.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.spans.iter().map(|span| span.len).sum()
    }

    /// Elements with weight decay.
    #[must_use]
    pub fn decayed(&self) -> Range<usize> {
        0..self.decay_end
    }

    /// Elements without weight decay.
    #[must_use]
    pub fn undecayed(&self) -> Range<usize> {
        self.decay_end..self.total
    }

    /// Digest over names, shapes and places: equal on ranks that train the same parameters.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for span in &self.spans {
            hasher.update(&(span.name.len() as u64).to_le_bytes());
            hasher.update(span.name.as_bytes());
            hasher.update(&(span.shape.len() as u64).to_le_bytes());
            for side in &span.shape {
                hasher.update(&side.to_le_bytes());
            }
            hasher.update(&(span.offset as u64).to_le_bytes());
        }
        hasher.finalize()
    }
}

/// Which of the four buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Buffer {
    /// Trained weights.
    Weights,
    /// Reduced gradients of the step.
    Grads,
    /// First moments of AdamW.
    ExpAvg,
    /// Second moments of AdamW.
    ExpAvgSq,
}

/// Weights, gradients and moments: four 1-D fp32 tensors of [`FlatLayout::total`] elements.
#[derive(Debug)]
pub struct FlatState {
    layout: Arc<FlatLayout>,
    /// Trained weights.
    pub weights: Tensor,
    /// Reduced gradients.
    pub grads: Tensor,
    /// First moments.
    pub exp_avg: Tensor,
    /// Second moments.
    pub exp_avg_sq: Tensor,
    loans: Arc<Loans>,
}

impl FlatState {
    /// Four zeroed buffers on `device`.
    ///
    /// # Errors
    /// When libtorch can not allocate.
    pub fn new(layout: Arc<FlatLayout>, device: Device) -> Result<Self, FlatError> {
        let zeros = || Tensor::f_zeros([layout.total() as i64], (Kind::Float, device));
        let (weights, grads) = (zeros()?, zeros()?);
        let (exp_avg, exp_avg_sq) = (zeros()?, zeros()?);
        Ok(Self {
            layout,
            weights,
            grads,
            exp_avg,
            exp_avg_sq,
            loans: Arc::default(),
        })
    }

    /// The layout shared by the four buffers.
    #[must_use]
    pub fn layout(&self) -> &Arc<FlatLayout> {
        &self.layout
    }

    /// The device of the buffers.
    #[must_use]
    pub fn device(&self) -> Device {
        self.weights.device()
    }

    /// One whole buffer.
    pub fn buffer(&self, which: Buffer) -> &Tensor {
        match which {
            Buffer::Weights => &self.weights,
            Buffer::Grads => &self.grads,
            Buffer::ExpAvg => &self.exp_avg,
            Buffer::ExpAvgSq => &self.exp_avg_sq,
        }
    }

    /// A weight in its own shape, sharing storage with the buffer. It is a leaf: call
    /// `set_requires_grad(true)` on it and take gradients with respect to it.
    ///
    /// # Errors
    /// [`FlatError::Unknown`] when the layout lacks the name.
    pub fn view(&self, name: &str) -> Result<Tensor, FlatError> {
        self.view_of(Buffer::Weights, name)
    }

    /// Like [`FlatState::view`], of any buffer.
    ///
    /// # Errors
    /// [`FlatError::Unknown`] when the layout lacks the name.
    pub fn view_of(&self, which: Buffer, name: &str) -> Result<Tensor, FlatError> {
        let span = self
            .layout
            .span(name)
            .ok_or_else(|| FlatError::Unknown(name.into()))?;
        self.view_at(which, span)
    }

    fn view_at(&self, which: Buffer, span: &Span) -> Result<Tensor, FlatError> {
        let flat = self.buffer(which);
        let (offset, len) = (span.offset as i64, span.len as i64);
        Ok(no_grad(|| {
            flat.f_narrow(0, offset, len)?
                .f_view(&span.shape[..])?
                .f_detach()
        })?)
    }

    /// A buffer's values in host memory: in place on the CPU, a copy on other devices.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn host(&self, which: Buffer) -> Result<HostBuffer<'_>, FlatError> {
        let flat = self.buffer(which);
        let tensor = match flat.device() {
            Device::Cpu => flat.shallow_clone(),
            _ => flat.f_to_device(Device::Cpu)?,
        };
        f32_slice(&tensor)?;
        Ok(HostBuffer {
            tensor,
            _buffer: flat,
        })
    }

    /// A buffer's values for another thread: in place on the CPU, a copy on other devices. Until
    /// it is dropped nobody changes them.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn lend(&self, which: Buffer) -> Result<Lent, FlatError> {
        let HostBuffer { tensor, .. } = self.host(which)?;
        match self.device() {
            Device::Cpu => Ok(Lent::new(tensor, &self.loans)),
            _ => Ok(Lent::new(tensor, &Arc::default())),
        }
    }

    /// Waits until nobody reads what was lent. Call it before weights or moments are changed.
    pub fn wait_for_readers(&self) {
        self.loans.settle();
    }

    /// How long writers have waited for readers, in all.
    #[must_use]
    pub fn waited_for_readers(&self) -> Duration {
        self.loans.waited()
    }

    /// Sets one parameter's values in a buffer.
    ///
    /// # Errors
    /// [`FlatError::Unknown`], or [`FlatError::Length`] when `values` has another length.
    pub fn load(&mut self, which: Buffer, name: &str, values: &[f32]) -> Result<(), FlatError> {
        let span = self
            .layout
            .span(name)
            .ok_or_else(|| FlatError::Unknown(name.into()))?;
        if values.len() != span.len {
            let (expected, found) = (span.len, values.len());
            return Err(FlatError::Length {
                name: name.into(),
                expected,
                found,
            });
        }
        let source = Tensor::from_slice(values).f_view(&span.shape[..])?;
        self.wait_for_readers();
        no_grad(|| {
            self.view_at(which, span)?
                .f_copy_(&source)
                .map_err(FlatError::from)
        })?;
        Ok(())
    }

    /// Sets a whole buffer, padding included; values in the padding are dropped.
    ///
    /// # Errors
    /// [`FlatError::Length`] when `values` has another length than the buffer.
    pub fn load_all(&mut self, which: Buffer, values: &[f32]) -> Result<(), FlatError> {
        if values.len() != self.layout.total() {
            let (expected, found) = (self.layout.total(), values.len());
            return Err(FlatError::Length {
                name: "the whole buffer".into(),
                expected,
                found,
            });
        }
        let layout = Arc::clone(&self.layout);
        for span in layout.spans() {
            self.load(which, &span.name, &values[span.range()])?;
        }
        Ok(())
    }

    /// blake3 over the trained weights in ascending order of names, as fp32 little endian.
    ///
    /// # Errors
    /// When the weights can not be copied to the host.
    pub fn weights_digest(&self) -> Result<blake3::Hash, FlatError> {
        let weights = self.host(Buffer::Weights)?;
        let mut by_name: Vec<&Span> = self.layout.spans().iter().collect();
        by_name.sort_by(|a, b| a.name.cmp(&b.name));
        let mut hasher = blake3::Hasher::new();
        for span in by_name {
            hasher.update(le_bytes(&weights[span.range()]));
        }
        Ok(hasher.finalize())
    }
}

/// A buffer's values in host memory, as a slice of [`FlatLayout::total`] elements.
#[derive(Debug)]
pub struct HostBuffer<'a> {
    tensor: Tensor,
    /// Borrowed, so that the state can not be changed while the values are read.
    _buffer: &'a Tensor,
}

impl Deref for HostBuffer<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // `host` has checked the tensor once; an empty slice can not arise from it.
        f32_slice(&self.tensor).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests;
