//! How a newcomer gets the state of training from those that have it (P9).
//!
//! ```text
//! standings ─► source: the lowest rank of those that are furthest, if all of them are alike
//!                                                          └─► head ─► chunks ─► digest
//! ```
//!
//! Everything goes through the generation's own mesh, so peers are authenticated, lengths are limited,
//! and whoever is lost on the way ends the generation like in any collective. Chunks go to newcomers
//! alone. A
//! newcomer keeps what it has got: in the next generation the transfer goes on there, from whoever is
//! the source then, since all veterans of one step have the same bits.

use blake3::{Hash, Hasher};
use mks2_proto::agreement::{self, Verdict};
use mks2_proto::failure::Failure;

use super::{Cause, Setback, Standing};
use crate::audit::{self, Difference};
use crate::collectives::Collective;
use crate::flat::{Buffer, FlatState, le_bytes, le_bytes_mut};
use crate::replica::Replica;
use crate::train::{Progress, Recent};

/// Bytes of one message; in tests the state of a few parameters has several.
const CHUNK: usize = if cfg!(test) { 256 } else { 16 << 20 };
/// What is handed over of the flat state; gradients belong to a step.
const BUFFERS: [Buffer; 3] = [Buffer::Weights, Buffer::ExpAvg, Buffer::ExpAvgSq];

/// The state of training as a member has it.
#[derive(Clone, Copy)]
pub struct Original<'a> {
    /// Digest of what must be equal on both sides: stage, plan, parameters.
    pub identity: Hash,
    /// The state.
    pub replica: &'a Replica,
}

/// The same, to be filled by a newcomer.
pub struct Blank<'a> {
    /// As [`Original::identity`].
    pub identity: Hash,
    /// What is to be filled.
    pub replica: &'a mut Replica,
}

/// A newcomer on its way into the run.
pub struct Arrival<'a> {
    /// What it prepared; nothing for a stage that trains nothing.
    blank: Option<Blank<'a>>,
    /// The state that was received so far, and at which standing it is that.
    received: Vec<u8>,
    of: Option<Standing>,
}

impl<'a> Arrival<'a> {
    /// One that has prepared this.
    #[must_use]
    pub fn new(blank: Option<Blank<'a>>) -> Self {
        Self {
            blank,
            received: Vec::new(),
            of: None,
        }
    }

    /// Whether the stage that it prepared has a state of training.
    pub(super) fn has_state(&self) -> bool {
        self.blank.is_some()
    }

    /// What a newcomer says of itself: which step's state it has received, and how much.
    pub(super) fn standing(&self, stage: &Standing) -> Standing {
        let of = self.of.as_ref();
        Standing {
            point: stage.point,
            committed: of.map_or(0, |of| of.committed),
            compared: 0,
            sums: Vec::new(),
            newcomer: Some(self.received.len() as u64),
        }
    }
}

/// A member's part in a handover.
pub enum Role<'a, 'b> {
    /// It has the state; none where a stage has no state.
    Veteran(Option<Original<'a>>),
    /// It needs it.
    Newcomer(&'b mut Arrival<'a>),
}

/// Hands the state over to the newcomers among `all`; gives the standing of the source, which is the
/// newcomers' from now on. Nothing to do without newcomers.
///
/// # Errors
/// When a peer is lost, or those that have the state are not alike. For a newcomer also when it has prepared something else.
pub(super) fn hand_over(
    collective: &mut dyn Collective,
    all: &[Standing],
    role: &mut Role<'_, '_>,
) -> Result<Option<Standing>, Setback> {
    let newcomers = || all.iter().filter(|one| one.newcomer.is_some());
    if newcomers().next().is_none() {
        return Ok(None);
    }
    let Some(source) = agreement::source(all.iter().map(Standing::place)) else {
        return Err(Setback::Fatal(nobody_knows()));
    };
    let standing = &all[source];
    compare(collective, all, standing, role)?;
    let has_kept = |one: &Standing| {
        let same = one.committed == standing.committed && one.point.stage == standing.point.stage;
        one.newcomer.filter(|_| same).unwrap_or(0)
    };
    let from = newcomers().map(has_kept).min().unwrap_or(0);
    let from = usize::try_from(from).unwrap_or(0);
    let to = ranks_of_newcomers(all);
    let is_source = collective.rank() == source;
    match role {
        Role::Veteran(Some(original)) if is_source => give(collective, &to, original, from)?,
        Role::Veteran(None) if is_source => drop(collective.broadcast(source, &[])?),
        Role::Veteran(_) => watch(collective, source, &to)?,
        Role::Newcomer(_) if all[collective.rank()].point.stage != standing.point.stage => {
            return Err(overtaken().into());
        }
        Role::Newcomer(arrival) => take(collective, (source, &to), standing, from, arrival)?,
    }
    Ok(Some(standing.clone()))
}

fn ranks_of_newcomers(all: &[Standing]) -> Vec<usize> {
    let newcomers = all.iter().enumerate();
    let newcomers = newcomers.filter(|(_, one)| one.newcomer.is_some());
    newcomers.map(|(rank, _)| rank).collect()
}

/// Whether all that have the state of the source's place are alike: a damaged copy must not be
/// doubled. A single one has to be believed.
fn compare(
    collective: &mut dyn Collective,
    all: &[Standing],
    source: &Standing,
    role: &Role<'_, '_>,
) -> Result<(), Setback> {
    let knows = |one: &Standing| one.newcomer.is_none() && same_state(one, source);
    if all.iter().filter(|one| knows(one)).count() < 2 {
        return Ok(());
    }
    let mine = match role {
        Role::Veteran(Some(original)) if knows(&all[collective.rank()]) => {
            Some(original.replica.digest()?)
        }
        _ => None,
    };
    let odd = match audit::compare(collective, mine)? {
        Verdict::Alike => return Ok(()),
        Verdict::Odd(odd) => odd,
        Verdict::Split => Vec::new(),
    };
    Err(Setback::Peers(Cause::Differ(Difference {
        step: source.committed,
        agreed_step: source.compared,
        odd,
    })))
}

fn same_state(one: &Standing, other: &Standing) -> bool {
    (one.point, one.committed) == (other.point, other.committed)
}

/// What comes before the chunks. Little endian: identity [u8; 32], bytes u64, reducer u32 and its
/// bytes, progress, the last steps.
fn head(original: &Original<'_>) -> Vec<u8> {
    let replica = original.replica;
    let reducer = replica.reducer.state_bytes();
    let mut head = original.identity.as_bytes().to_vec();
    head.extend((total(&replica.state) as u64).to_le_bytes());
    head.extend((reducer.len() as u32).to_le_bytes());
    head.extend(reducer);
    head.extend(replica.progress.encode());
    head.extend(replica.recent.encode());
    head
}

fn total(state: &FlatState) -> usize {
    BUFFERS.len() * state.layout().total() * size_of::<f32>()
}

fn give(
    collective: &mut dyn Collective,
    to: &[usize],
    original: &Original<'_>,
    from: usize,
) -> Result<(), Setback> {
    let source = collective.rank();
    collective.broadcast(source, &head(original))?;
    let mut hasher = Hasher::new();
    let mut at = 0;
    for buffer in BUFFERS {
        let values = original.replica.state.host(buffer).map_err(Failure::from)?;
        for chunk in le_bytes(&values).chunks(CHUNK) {
            hasher.update(chunk);
            // Chunks that all newcomers have are not sent again.
            if at + chunk.len() > from {
                collective.multicast(source, to, chunk)?;
            }
            at += chunk.len();
        }
    }
    collective.broadcast(source, hasher.finalize().as_bytes())?;
    Ok(())
}

/// Another veteran keeps in step until the digest, which all get.
fn watch(collective: &mut dyn Collective, source: usize, to: &[usize]) -> Result<(), Setback> {
    let head = collective.broadcast(source, &[])?;
    if head.is_empty() {
        return Ok(());
    }
    while collective.multicast(source, to, &[])?.is_empty() {}
    Ok(())
}

fn take(
    collective: &mut dyn Collective,
    (source, to): (usize, &[usize]),
    standing: &Standing,
    from: usize,
    arrival: &mut Arrival<'_>,
) -> Result<(), Setback> {
    let head = collective.broadcast(source, &[])?;
    let Some(blank) = &mut arrival.blank else {
        return match head.is_empty() {
            true => Ok(()),
            false => Err(overtaken().into()),
        };
    };
    let head = Head::read(&head).filter(|head| {
        head.identity == blank.identity && head.bytes == total(&blank.replica.state) as u64
    });
    let Some(head) = head else {
        return Err(overtaken().into());
    };
    let is_the_same = arrival.of.as_ref().is_some_and(|of| {
        of.committed == standing.committed && of.point.stage == standing.point.stage
    });
    arrival
        .received
        .truncate(if is_the_same { from } else { 0 });
    arrival.of = Some(standing.clone());
    // The digest is the only message of its length, since chunks are multiples of 64 bytes.
    let digest = loop {
        let message = collective.multicast(source, to, &[])?;
        match <[u8; blake3::OUT_LEN]>::try_from(message.as_slice()) {
            Ok(digest) => break digest,
            Err(_) => arrival.received.extend(message),
        }
    };
    let found = blake3::hash(&arrival.received);
    if found != Hash::from_bytes(digest) || arrival.received.len() as u64 != head.bytes {
        arrival.received.clear();
        arrival.of = None;
        return Err(damaged().into());
    }
    fill(blank.replica, &head, &arrival.received)?;
    arrival.received = Vec::new();
    Ok(())
}

/// A head as it was received.
struct Head {
    identity: Hash,
    bytes: u64,
    reducer: Vec<u8>,
    progress: Progress,
    recent: Recent,
}

impl Head {
    fn read(message: &[u8]) -> Option<Self> {
        let (identity, rest) = message.split_first_chunk::<{ blake3::OUT_LEN }>()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (reducer, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let (progress, rest) = Progress::decode(rest)?;
        Some(Self {
            identity: Hash::from_bytes(*identity),
            bytes: u64::from_le_bytes(*bytes),
            reducer: reducer.to_vec(),
            progress,
            recent: Recent::decode(rest)?,
        })
    }
}

fn fill(replica: &mut Replica, head: &Head, received: &[u8]) -> Result<(), Failure> {
    let mut values = vec![0_f32; replica.state.layout().total()];
    let bytes = values.len() * size_of::<f32>();
    for (buffer, part) in BUFFERS.into_iter().zip(received.chunks(bytes.max(1))) {
        le_bytes_mut(&mut values).copy_from_slice(part);
        replica.state.load_all(buffer, &values)?;
    }
    replica.reducer.load_state(&head.reducer)?;
    replica.progress = head.progress.clone();
    replica.recent = head.recent.clone();
    Ok(())
}

fn overtaken() -> Failure {
    Failure::environment(
        "this worker cannot take part yet",
        "the others are at another stage than the one that it has prepared",
        "start it again: it will prepare theirs",
    )
}

fn damaged() -> Failure {
    Failure::environment(
        "this worker cannot take part",
        "the state that it was sent does not have the digest that the sender gave",
        "start it again; if this comes back, the memory of one of the machines may be damaged",
    )
}

fn nobody_knows() -> Failure {
    Failure::environment(
        "this worker cannot take part",
        "those that could have told it the state of training were lost",
        "start it again: the run goes on from its latest checkpoint",
    )
}

#[cfg(test)]
mod tests;
