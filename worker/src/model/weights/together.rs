//! What lies together in memory: matrices that read the same input, so that a model takes them as one
//! ([`Weights::fused`](super::Weights::fused)) and nothing is there twice.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

/// What reads the same input, in the order in which it lies in memory.
const TOGETHER: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];

/// What a tensor lies together with, and at which place; alone under its own name.
pub(crate) fn group_of(name: &str) -> (String, usize) {
    for together in TOGETHER {
        for (rank, part) in together.iter().enumerate() {
            if name.contains(part) {
                return (name.replace(part, &together.concat()), rank);
            }
        }
    }
    (name.to_owned(), 0)
}

/// A tensor that is to be of a kind.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) tensor: Tensor,
    pub(super) kind: Kind,
}

impl Member {
    fn is_there(&self, device: Device) -> bool {
        self.tensor.kind() == self.kind && self.tensor.device() == device
    }
}

/// The tensors on `device`, each in its kind. Groups of which any member must be copied are copied as a
/// whole, into one memory; with `anew` all are. What was only here is dropped group by group.
pub(super) fn together(
    members: impl Iterator<Item = Member>,
    device: Device,
    anew: bool,
) -> Vec<(String, Tensor)> {
    let mut groups: BTreeMap<String, Vec<(usize, Member)>> = BTreeMap::new();
    for member in members {
        let (group, rank) = group_of(&member.name);
        groups.entry(group).or_default().push((rank, member));
    }
    let mut all = Vec::new();
    for mut group in groups.into_values() {
        group.sort_unstable_by(|(a, one), (b, other)| (a, &one.name).cmp(&(b, &other.name)));
        let members: Vec<Member> = group.into_iter().map(|(_, member)| member).collect();
        let stays = !anew && members.iter().all(|member| member.is_there(device));
        let named = |member: Member| (member.name, member.tensor);
        all.extend(match stays {
            true => members.into_iter().map(named).collect(),
            false => copied(members, device),
        });
    }
    all
}

/// Copies in one memory for each kind: what is of one group is of one kind.
fn copied(members: Vec<Member>, device: Device) -> Vec<(String, Tensor)> {
    let mut copies = Vec::with_capacity(members.len());
    for alike in members.chunk_by(|one, next| one.kind == next.kind) {
        let sizes: Vec<i64> = alike.iter().map(|one| one.tensor.numel() as i64).collect();
        let all = Tensor::empty([sizes.iter().sum::<i64>()], (alike[0].kind, device));
        for (member, part) in alike.iter().zip(all.split_with_sizes(sizes, 0)) {
            let mut copy = part.view(member.tensor.size().as_slice());
            copy.copy_(&member.tensor);
            copies.push((member.name.clone(), copy));
        }
    }
    copies
}
