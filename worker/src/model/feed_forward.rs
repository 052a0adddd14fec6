//! The two-layer network of a block: the decoder's MLP and the visual memories are the same text.
//!
//! ```text
//! gated   down(silu(gate x) * up x)      SwiGLU (Shazeer 2020)   three matrices
//! plain   down(gelu(up x))                                       two matrices
//! ```

use mks2_proto::job::MemoryForm;
use tch::{Device, Tensor};

use super::lora::{Lora, LoraSettings, adapted};
use super::ops::linear;
use super::{Result, Weights};

/// The weights of one network.
#[derive(Debug)]
pub(super) struct FeedForward {
    gate_wd: Option<Tensor>,
    up_wd: Tensor,
    down_dw: Tensor,
    /// `gate` and `up` stacked, when they are frozen.
    gate_up: Option<Tensor>,
}

impl Clone for FeedForward {
    fn clone(&self) -> Self {
        let copy = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Self {
            gate_wd: copy(&self.gate_wd),
            up_wd: self.up_wd.shallow_clone(),
            down_dw: self.down_dw.shallow_clone(),
            gate_up: copy(&self.gate_up),
        }
    }
}

impl FeedForward {
    /// The network `<at>.{gate,up,down}_proj.weight`, `d` wide outside and `w` inside.
    pub(super) fn new(
        at: &str,
        form: MemoryForm,
        [d, w]: [i64; 2],
        weights: &Weights,
    ) -> Result<Self> {
        let matrix =
            |name: &str, shape: [i64; 2]| weights.shaped(&format!("{at}.{name}.weight"), &shape);
        let gate_wd = match form {
            MemoryForm::Gated => Some(matrix("gate_proj", [w, d])?),
            MemoryForm::Plain => None,
        };
        let (up_wd, down_dw) = (matrix("up_proj", [w, d])?, matrix("down_proj", [d, w])?);
        let gate_up = gate_wd
            .as_ref()
            .and_then(|gate_wd| weights.fused(&[gate_wd, &up_wd]));
        Ok(Self {
            gate_wd,
            up_wd,
            down_dw,
            gate_up,
        })
    }

    /// Hidden units.
    pub(super) fn width(&self) -> i64 {
        self.up_wd.size()[0]
    }

    /// Whether it is gated, and its width outside and inside.
    pub(super) fn shape(&self) -> (bool, [i64; 2]) {
        (
            self.gate_wd.is_some(),
            [self.down_dw.size()[0], self.width()],
        )
    }

    /// The matrix through which its hidden units speak.
    pub(super) fn output(&self) -> &Tensor {
        &self.down_dw
    }

    /// Where its weights are.
    pub(super) fn device(&self) -> Device {
        self.up_wd.device()
    }

    /// The same network with its hidden units permuted between the two layers: unit `i` speaks
    /// through the column of unit `order[i]`.
    pub(super) fn permuted(&self, order: &Tensor, weights: &Weights) -> Self {
        let down_dw = self.down_dw.detach().index_select(1, order);
        weights.derive(&down_dw);
        Self {
            down_dw,
            ..self.clone()
        }
    }

    /// `x`, `[.., d]`, through the network.
    pub(super) fn forward(&self, x: &Tensor, adapters: Option<&FeedForwardAdapters>) -> Tensor {
        let (gate, up) = self.gate_and_up(x);
        let up = adapted(up, x, adapters.map(|adapters| &adapters.up));
        let inner = match gate {
            Some(gate) => {
                let adapter = adapters.and_then(|adapters| adapters.gate.as_ref());
                adapted(gate, x, adapter).silu() * up
            }
            None => up.gelu("none"),
        };
        let out = linear(&inner, &self.down_dw);
        adapted(out, &inner, adapters.map(|adapters| &adapters.down))
    }

    fn gate_and_up(&self, x: &Tensor) -> (Option<Tensor>, Tensor) {
        if let Some(gate_up) = &self.gate_up {
            let mut parts = linear(x, gate_up).chunk(2, -1);
            let up = parts.pop();
            if let (Some(gate), Some(up)) = (parts.pop(), up) {
                return (Some(gate), up);
            }
        }
        (
            self.gate_wd.as_ref().map(|gate_wd| linear(x, gate_wd)),
            linear(x, &self.up_wd),
        )
    }
}

/// Adapters of a network's matrices.
#[derive(Debug)]
pub(super) struct FeedForwardAdapters {
    gate: Option<Lora>,
    up: Lora,
    down: Lora,
}

impl FeedForwardAdapters {
    /// The adapters `<at>.{gate,up,down}_proj.*` of a network of this shape.
    pub(super) fn new(
        at: &str,
        (gated, [d, w]): (bool, [i64; 2]),
        settings: LoraSettings,
        weights: &Weights,
    ) -> Result<Self> {
        let adapter =
            |name: &str, shape| Lora::new(&format!("{at}.{name}"), shape, settings, weights);
        let gate = match gated {
            true => Some(adapter("gate_proj", [w, d])?),
            false => None,
        };
        Ok(Self {
            gate,
            up: adapter("up_proj", [w, d])?,
            down: adapter("down_proj", [d, w])?,
        })
    }
}
