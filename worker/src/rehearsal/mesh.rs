//! Ranks without a coordinator: each knows the addresses of all beforehand.

use std::net::SocketAddr;

use crate::collectives::tcp::{DataListener, Mesh, Roster, local_listeners};
use crate::collectives::{AbortFlag, CollectiveError, Limits};

/// Addresses for as many processes of this machine, free until this returns: all different, but
/// another program may take one before its process does.
///
/// # Errors
/// [`CollectiveError::Bind`] when no port is free.
pub(crate) fn addresses(count: usize) -> Result<Vec<SocketAddr>, CollectiveError> {
    let listeners = local_listeners(count)?;
    Ok(listeners.iter().map(DataListener::address).collect())
}

/// [`form`] for a rank that knows from its command line where it is to listen.
///
/// # Errors
/// When `rank` has no address, its port is taken, or another rank does not come in time.
pub(crate) fn form_at(
    rank: usize,
    addresses: &[SocketAddr],
    limits: &Limits,
    abort: &AbortFlag,
) -> Result<Mesh, CollectiveError> {
    let own = addresses.get(rank).ok_or_else(|| {
        CollectiveError::Usage(format!("rank {rank} is not one of {}", addresses.len()))
    })?;
    form(&DataListener::bind(*own)?, rank, addresses, limits, abort)
}

/// Connects the ranks that listen at `addresses`; every one of them must call it.
///
/// # Errors
/// When another rank does not come in time.
pub(crate) fn form(
    listener: &DataListener,
    rank: usize,
    addresses: &[SocketAddr],
    limits: &Limits,
    abort: &AbortFlag,
) -> Result<Mesh, CollectiveError> {
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
    Mesh::form(listener, &roster, &limits, abort)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectives::Collective;

    #[test]
    fn ranks_find_each_other_and_strangers_are_refused() {
        let listeners = local_listeners(2).unwrap();
        let addresses: Vec<_> = listeners.iter().map(DataListener::address).collect();
        let addresses = &addresses;
        let (limits, abort) = (&Limits::default(), &AbortFlag::new());
        let worlds: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = listeners
                .iter()
                .enumerate()
                .map(|(rank, listener)| {
                    scope.spawn(move || {
                        let mut mesh = form(listener, rank, addresses, limits, abort).unwrap();
                        mesh.barrier().unwrap();
                        mesh.world()
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(worlds, [2, 2]);
        let stranger = form_at(2, addresses, limits, abort);
        assert!(matches!(stranger, Err(CollectiveError::Usage(_))));
    }
}
