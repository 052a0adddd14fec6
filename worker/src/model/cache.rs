//! Generation: a decoder that goes on from the keys and values of what it has read.
//!
//! ```text
//! cache        per block: keys and values [s, c, g, k], of s rows with room for c positions each
//! read         rows are appended: their positions are computed at once (`Decoder::read`)
//! advance      one further position for every row, wherever each of them stands (`Decoder::advance`)
//! remove       the last row takes the place of one that is done: rows stay side by side
//! park         a row leaves with its keys and values, for a while (`Decoder::resume`)
//! ```
//!
//! Rows may be of different lengths. What lies behind a row's length is never seen. There is room for as many
//! positions in each row as the longest one needs, so rows times positions are limited.

use tch::{Device, Kind, Tensor};

use super::attention::{Heads, Sight};
use super::block::{Pass, Read, SecondHalves, Stack};
use super::ops::rms_norm;
use super::rotary::Rotary;
use super::view::Seen;
use super::weights::expect_shape;
use super::{ModelError, Result};

/// Positions for which there is room at first; it grows by powers of two, as far as it may.
pub(crate) const ROOM: i64 = 64;
/// Room is given back where the longest row needs less than the inverse of this.
const WASTE: i64 = 4;

/// Whose states reading gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Of the last position of each row, `[b, 1, d]`.
    Last,
    /// Of all positions, `[b, t, d]`.
    All,
}

/// Keys and values of rows of text; see the module's header.
#[derive(Debug)]
pub struct Cache {
    /// Keys and values of each block, `[s, c, g, k]`.
    blocks: Vec<[Tensor; 2]>,
    lengths: Vec<i64>,
    /// Rows and positions for which every table has room.
    room: (i64, i64),
    /// Rows times positions for which there may be room.
    most: i64,
    /// Tables of the positions `0 .. c`, or of more.
    turns: Option<Rotary>,
}

/// A row that has left a [`Cache`] and may come back. It takes no more memory than it needs, and none of a GPU.
#[derive(Debug)]
pub struct Parked {
    blocks: Vec<[Tensor; 2]>,
    length: i64,
}

impl Parked {
    /// Positions that the row has.
    pub fn length(&self) -> i64 {
        self.length
    }
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

    /// Positions of the longest row.
    pub fn longest(&self) -> i64 {
        self.lengths.iter().max().copied().unwrap_or_default()
    }

    /// Whether there may be room for so many rows with so many positions each.
    pub fn may_have(&self, rows: usize, positions: i64) -> bool {
        (rows as i64).saturating_mul(positions) <= self.most
    }

    /// Takes a row out, to bring it back later. The last one takes its place.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn park(&mut self, row: usize) -> Result<Parked> {
        let length = self.lengths[row];
        let copied = |table: &Tensor| {
            let own = table.get(row as i64).narrow(0, 0, length);
            let copied = own.f_to_device_(Device::Cpu, own.kind(), false, true);
            copied.map_err(|error| no_room((1, length), &error))
        };
        let blocks = self.blocks.iter();
        let blocks = blocks.map(|[keys, values]| Ok([copied(keys)?, copied(values)?]));
        let blocks = blocks.collect::<Result<_>>()?;
        self.remove(row);
        Ok(Parked { blocks, length })
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
        self.shrink();
    }

    /// Gives room back that only rows needed which are gone.
    fn shrink(&mut self) {
        let (rows, had) = self.room;
        let needed = rounded(self.longest());
        // Of an empty one the next row decides.
        if !self.lengths.is_empty() && needed * WASTE <= had {
            // Where there is no memory to copy it stays as it is.
            let _ = self.remake((rows, needed));
        }
    }

    /// Makes room for so many rows and positions.
    fn reserve(&mut self, stack: &Stack, rows: usize, positions: i64) -> Result<()> {
        let positions = positions.max(self.longest());
        if !self.may_have(rows, positions) {
            let why = format!("there may be room for {} positions in all", self.most);
            return Err(no_room((rows as i64, positions), &why));
        }
        let (rows, (had_rows, had)) = (rows as i64, self.room);
        let is_wasted = self.lengths.is_empty() && rounded(positions) * WASTE <= had;
        let is_enough = positions <= had && !is_wasted;
        if rows <= had_rows && is_enough {
            return Ok(());
        }
        // Rows and positions beyond those that are needed come last.
        let more_rows = rows.max(had_rows);
        let rows = match more_rows.saturating_mul(positions) <= self.most {
            true => more_rows,
            false => rows,
        };
        let room = match is_enough {
            true => had,
            false => rounded(positions),
        };
        let room = room.min(self.most / rows.max(1));
        self.remake((rows, room))?;
        let shape = &stack.shape;
        let device = self
            .blocks
            .first()
            .map_or(Device::Cpu, |[keys, _]| keys.device());
        self.turns = Some(Rotary::new(
            room,
            shape.attention.head,
            &shape.turns,
            device,
        ));
        Ok(())
    }

    /// Tables with room for so many rows and positions, not fewer than there are.
    fn remake(&mut self, (rows, room): (i64, i64)) -> Result<()> {
        let (own_rows, longest) = (self.lengths.len() as i64, self.longest());
        // Should there be no memory for one of them, all have at least this.
        self.room = (self.room.0.min(rows), self.room.1.min(room));
        // One after the other, so that no more than one is there twice.
        for table in self.blocks.iter_mut().flatten() {
            let size = table.size();
            let size = [rows, room, size[2], size[3]];
            let new = Tensor::f_zeros(size, (table.kind(), table.device()));
            let new = new.map_err(|error| no_room((rows, room), &error))?;
            let own = |table: &Tensor| table.narrow(0, 0, own_rows).narrow(1, 0, longest);
            own(&new).copy_(&own(table));
            *table = new;
        }
        self.room = (rows, room);
        Ok(())
    }
}

/// Positions for which room is made where so many are needed.
fn rounded(positions: i64) -> i64 {
    (positions.max(ROOM) as u64).next_power_of_two() as i64
}

/// There is no memory for so many rows and positions.
fn no_room((rows, positions): (i64, i64), why: &impl std::fmt::Display) -> ModelError {
    ModelError::NoRoom {
        rows,
        positions,
        why: why.to_string(),
    }
}

impl Stack {
    /// An empty cache for at most so many rows times positions.
    pub(super) fn cache(&self, most: i64, options: (Kind, Device)) -> Cache {
        let shape = &self.shape.attention;
        let none = || Tensor::zeros([0, 0, shape.groups, shape.head], options);
        let blocks = self.blocks.iter().map(|_| [none(), none()]);
        Cache {
            blocks: blocks.collect(),
            lengths: Vec::new(),
            room: (0, 0),
            most,
            turns: None,
        }
    }

    /// Elements of keys and values that a position has.
    pub(super) fn kept_elements(&self) -> i64 {
        let shape = &self.shape.attention;
        2 * self.blocks.len() as i64 * shape.groups * shape.head
    }

    /// Makes room for so many rows and positions.
    pub(super) fn make_room(&self, cache: &mut Cache, rows: usize, positions: i64) -> Result<()> {
        cache.reserve(self, rows, positions)
    }

    /// Brings a row back; it is the last one.
    pub(super) fn resume(&self, parked: &Parked, cache: &mut Cache) -> Result<()> {
        let row = cache.rows();
        cache.reserve(self, row + 1, parked.length)?;
        for (tables, own) in cache.blocks.iter().zip(&parked.blocks) {
            for (table, own) in tables.iter().zip(own) {
                let mut place = table.get(row as i64).narrow(0, 0, parked.length);
                place.copy_(own);
            }
        }
        cache.lengths.push(parked.length);
        Ok(())
    }

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
        cache.reserve(self, (first + b) as usize, t)?;
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
        let most = cache.longest() + 1;
        cache.reserve(self, b as usize, most)?;
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
