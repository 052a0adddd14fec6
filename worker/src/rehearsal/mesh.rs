//! Ranks without a coordinator: each knows the addresses of all from its command line.

use std::net::SocketAddr;

use crate::collectives::tcp::{DataListener, Mesh, Roster};
use crate::collectives::{AbortFlag, CollectiveError, Limits};

/// Connects the ranks that listen at `addresses`; every one of them must call it.
///
/// # Errors
/// When `rank` has no address, its port is taken, or another rank does not come in time.
pub(crate) fn form(
    rank: usize,
    addresses: &[SocketAddr],
    limits: &Limits,
    abort: &AbortFlag,
) -> Result<Mesh, CollectiveError> {
    let own = addresses.get(rank).ok_or_else(|| {
        CollectiveError::Usage(format!("rank {rank} is not one of {}", addresses.len()))
    })?;
    let listener = DataListener::bind(*own)?;
    let roster = Roster {
        run_id: "rehearsal".into(),
        token: "rehearsal".into(),
        generation: 1,
        rank,
        addresses: addresses.to_vec(),
        broken: None,
    };
    // The others may start later.
    let limits = Limits {
        pulse: None,
        ..limits.clone()
    };
    Mesh::form(&listener, &roster, &limits, abort)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectives::Collective;
    use crate::collectives::tcp::free_address;

    #[test]
    fn ranks_find_each_other_and_strangers_are_refused() {
        let addresses = [free_address().unwrap(), free_address().unwrap()];
        let join = |rank| form(rank, &addresses, &Limits::default(), &AbortFlag::new());
        let worlds = std::thread::scope(|scope| {
            let ranks = [0, 1].map(|rank| {
                scope.spawn(move || {
                    let mut mesh = join(rank).unwrap();
                    mesh.barrier().unwrap();
                    mesh.world()
                })
            });
            ranks.map(|rank| rank.join().unwrap())
        });
        assert_eq!(worlds, [2, 2]);
        assert!(matches!(join(2), Err(CollectiveError::Usage(_))));
    }
}
