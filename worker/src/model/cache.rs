//! Generation: a decoder that goes on from the keys and values of what it has read.
//!
//! ```text
//! cache        per block: keys and values [s, c, g, k], of s rows with room for c positions each
//! read         rows are appended: their positions are computed at once (`Decoder::read`)
//! advance      one further position for every row, wherever each of them stands (`Decoder::advance`)
//! remove       the last row takes the place of one that is done: rows stay side by side
//! ```
//!
//! Rows may be of different lengths. What lies behind a row's length is never seen.

use tch::{Device, Kind, Tensor};

use super::attention::{Heads, Sight};
use super::block::{Pass, Read, SecondHalves, Stack};
use super::ops::rms_norm;
use super::rotary::Rotary;
use super::view::Seen;
use super::weights::expect_shape;
use super::{ModelError, Result};

/// Positions for which there is room at first; there is always room for a power of two times so many.
const ROOM: i64 = 64;

/// Whose states reading gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Of the last position of each row, `[b, 1, d]`.
    Last,
    /// Of all positions, `[b, t, d]`.
    All,
}

/// Keys and values of rows of text; see the module's header.
#[derive(Debug, Default)]
pub struct Cache {
    /// Keys and values of each block, `[s, c, g, k]`.
    blocks: Vec<[Tensor; 2]>,
    lengths: Vec<i64>,
    /// Tables of the positions `0 .. c`.
    turns: Option<Rotary>,
}

impl Cache {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Positions that a row has.
    pub fn length(&self, row: usize) -> i64 {
        self.lengths[row]
    }

    /// Takes a row out. The last one takes its place.
    pub fn remove(&mut self, row: usize) {
        let last = self.lengths.len() - 1;
        let (length, had) = (self.lengths[last], self.lengths[row]);
        for table in self.blocks.iter().flatten() {
            let of = |row: usize, length| table.get(row as i64).narrow(0, 0, length);
            // What is no number would not stay hidden: nothing times it is no number, too.
            let _ = of(row, had).zero_();
            if row != last {
                of(row, length).copy_(&of(last, length));
                let _ = of(last, length).zero_();
            }
        }
        self.lengths.swap_remove(row);
    }

    fn room(&self) -> (i64, i64) {
        let table = self.blocks.first();
        table.map_or((0, 0), |[keys, _]| (keys.size()[0], keys.size()[1]))
    }

    /// Makes room for so many rows and positions.
    fn reserve(&mut self, stack: &Stack, rows: i64, positions: i64, options: (Kind, Device)) {
        let (had_rows, had) = self.room();
        if rows <= had_rows && positions <= had {
            return;
        }
        let rows = rows.max(had_rows);
        let room = match positions <= had {
            true => had,
            false => (positions as u64).next_power_of_two().max(ROOM as u64) as i64,
        };
        let shape = &stack.shape.attention;
        let size = [rows, room, shape.groups, shape.head];
        let grown = |old: Option<&Tensor>| {
            let new = Tensor::zeros(size, options);
            if let Some(old) = old {
                new.narrow(0, 0, had_rows).narrow(1, 0, had).copy_(old);
            }
            new
        };
        // One after the other, so that no more than one is there twice.
        self.blocks
            .resize_with(stack.blocks.len(), || [Tensor::new(), Tensor::new()]);
        for table in self.blocks.iter_mut().flatten() {
            *table = grown(Some(&*table).filter(|old| old.defined()));
        }
        self.turns = Some(Rotary::new(room, shape.head, &stack.shape.turns, options.1));
    }
}

impl Stack {
    /// Reads new rows `h_btd`, padded on the right behind `lengths`, and gives the normed states that
    /// are wanted.
    pub(super) fn read(
        &self,
        h_btd: &Tensor,
        lengths: &[i64],
        (second, states): (SecondHalves<'_>, Wanted),
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let (b, d) = (lengths.len() as i64, self.shape.attention.hidden);
        expect_shape("h_btd", h_btd, &[b, -1, d])?;
        let t = h_btd.size()[1];
        if let Some(length) = lengths.iter().find(|length| !(1..=t).contains(*length)) {
            return Err(ModelError::Shape {
                name: "lengths".into(),
                expected: vec![t],
                found: vec![*length],
            });
        }
        let first = cache.rows() as i64;
        cache.reserve(self, first + b, t, (h_btd.kind(), h_btd.device()));
        let last_b1 = Tensor::from_slice(lengths)
            .to_device(h_btd.device())
            .unsqueeze(1)
            - 1;
        let pass = Pass::new(second).reading(match states {
            Wanted::All => Read::All,
            Wanted::Last => Read::At(&last_b1),
        });
        let states = self.forward_keeping(h_btd, &pass, |layer, heads| {
            let [keys, values] = &cache.blocks[layer];
            for (table, new_btgk) in [(keys, &heads.k_btgk), (values, &heads.v_btgk)] {
                table.narrow(0, first, b).narrow(1, 0, t).copy_(new_btgk);
            }
        })?;
        cache.lengths.extend(lengths);
        Ok(states.last_bnd)
    }

    /// One further position `h_b1d` of every row; gives the normed states, `[b, 1, d]`.
    pub(super) fn advance(
        &self,
        h_b1d: &Tensor,
        second: SecondHalves<'_>,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let (b, device) = (cache.rows() as i64, h_b1d.device());
        expect_shape("h_b1d", h_b1d, &[b, 1, self.shape.attention.hidden])?;
        let most = cache.lengths.iter().max().copied().unwrap_or_default() + 1;
        cache.reserve(self, b, most, (h_b1d.kind(), device));
        let Some(turns) = &cache.turns else {
            return Ok(h_b1d.shallow_clone());
        };
        let places_b = Tensor::from_slice(&cache.lengths).to_device(device);
        let keys_t = Tensor::arange(most, (Kind::Int64, device));
        let window = self.shape.window.filter(|window| *window < most);
        let is_even = cache.lengths.iter().all(|length| length + 1 == most);
        let sight = Sight {
            keys: turns.at(&places_b.unsqueeze(1)),
            queries: None,
            mask: (window.is_some() || !is_even).then(|| {
                let seen = Seen {
                    keys_t: &keys_t,
                    window,
                    real_bt: None,
                };
                seen.by(&places_b.unsqueeze(1))
            }),
        };
        let rows_b = Tensor::arange(b, (Kind::Int64, device));
        let mut h = h_b1d.shallow_clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            let tables = &mut cache.blocks[layer];
            h = block.advance(&h, second, layer, &sight, |new| {
                let [k_btgk, v_btgk] = [&new.k_btgk, &new.v_btgk];
                let mut all = [(0, k_btgk), (1, v_btgk)].map(|(at, new_b1gk)| {
                    let place = [Some(&rows_b), Some(&places_b)];
                    let table = &mut tables[at];
                    let _ = table.index_put_(&place, &new_b1gk.squeeze_dim(1), false);
                    table.narrow(0, 0, b).narrow(1, 0, most)
                });
                Heads {
                    q_bnhk: new.q_bnhk,
                    k_btgk: std::mem::take(&mut all[0]),
                    v_btgk: std::mem::take(&mut all[1]),
                }
            });
        }
        for length in &mut cache.lengths {
            *length += 1;
        }
        Ok(rms_norm(&h, &self.norm_d, self.shape.eps))
    }
}

#[cfg(test)]
mod tests;
