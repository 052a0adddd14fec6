//! What the blocks of a pass compute and what they see, made once for the pass.

use tch::{Device, Kind, Tensor};

use super::attention::Sight;
use super::block::{Pass, Read, StackShape};
use super::rotary::Rotary;

/// What the inner blocks and the last one see: made once for a pass.
pub(super) struct Plan {
    pub(super) inner: View,
    pub(super) last: View,
}

/// The positions that a block computes, and what they see.
pub(super) struct View {
    pub(super) sight: Sight,
    pub(super) select: Selection,
}

/// How the positions to compute are taken out of all.
pub(super) enum Selection {
    All,
    From(i64),
    /// Row numbers of the flattened `[b t]`, and `[b, n]`.
    Rows(Tensor, [i64; 2]),
}

impl Plan {
    pub(super) fn view(&self, is_last: bool) -> &View {
        match is_last {
            true => &self.last,
            false => &self.inner,
        }
    }

    pub(super) fn new(shape: &StackShape, pass: &Pass, [b, t]: [i64; 2], device: Device) -> Self {
        let rotary = || Rotary::new(t, shape.attention.head, &shape.turns, device);
        let options = (Kind::Int64, device);
        let all = Tensor::arange(t, options);
        let seen = Seen {
            keys_t: &all,
            // A window as wide as the row hides nothing.
            window: shape.window.filter(|window| *window < t),
            real_bt: pass.keys_bt,
        };
        let inner_mask = match (seen.window, seen.real_bt) {
            (None, None) => None,
            _ => Some(seen.by(&all.unsqueeze(0))),
        };
        let inner = Sight {
            keys: rotary(),
            queries: None,
            mask: inner_mask,
        };
        let (select, queries, positions) = match pass.read {
            Read::All | Read::From(0) => (Selection::All, None, None),
            Read::From(start) => {
                let queries = inner.keys.narrow(start, t - start);
                let positions = all.narrow(0, start, t - start).unsqueeze(0);
                (Selection::From(start), Some(queries), Some(positions))
            }
            Read::At(positions_bn) => {
                let n = positions_bn.size()[1];
                let first = Tensor::arange(b, options).unsqueeze(1) * t;
                let rows = (positions_bn + first).flatten(0, -1);
                let queries = inner.keys.at(positions_bn);
                let positions = Some(positions_bn.shallow_clone());
                (Selection::Rows(rows, [b, n]), Some(queries), positions)
            }
        };
        let mask = match positions {
            Some(positions) => Some(seen.by(&positions)),
            None => inner.mask.as_ref().map(Tensor::shallow_clone),
        };
        let last = View {
            sight: Sight {
                keys: rotary(),
                queries,
                mask,
            },
            select,
        };
        Self {
            inner: View {
                sight: inner,
                select: Selection::All,
            },
            last,
        }
    }
}

/// What queries may see.
pub(super) struct Seen<'a> {
    pub(super) keys_t: &'a Tensor,
    pub(super) window: Option<i64>,
    /// Keys that are there.
    pub(super) real_bt: Option<&'a Tensor>,
}

impl Seen<'_> {
    /// Which keys each query may see, `[b or 1, 1, n, t]`.
    pub(super) fn by(&self, queries: &Tensor) -> Tensor {
        let queries = queries.unsqueeze(-1);
        let mut seen = self.keys_t.le_tensor(&queries);
        if let Some(window) = self.window {
            seen = seen.logical_and(&self.keys_t.gt_tensor(&(&queries - window)));
        }
        if let Some(real_bt) = self.real_bt {
            let itself = self.keys_t.eq_tensor(&queries);
            seen = seen.logical_and(&real_bt.unsqueeze(1).logical_or(&itself));
        }
        seen.unsqueeze(1)
    }
}

impl View {
    pub(super) fn select(&self, x_btd: &Tensor) -> Tensor {
        match &self.select {
            Selection::All => x_btd.shallow_clone(),
            Selection::From(start) => x_btd.narrow(1, *start, x_btd.size()[1] - start),
            Selection::Rows(rows, [b, n]) => {
                x_btd.flatten(0, 1).index_select(0, rows).view([*b, *n, -1])
            }
        }
    }
}
