//! Ports for processes that must know each other's before they start.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// An address of the loopback that nothing listens on, never the same one twice. The system gives
/// none of these ports to outgoing connections by itself, so it stays free.
pub(crate) fn free() -> SocketAddr {
    const PORTS: std::ops::Range<u16> = 10_000..20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two programs at a time shall not ask for the same ones.
    let offset = std::process::id().wrapping_mul(6_181);
    let mut candidates = PORTS.map(|_| {
        let number = offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).into());
        let place = number % u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(place).expect("within the range");
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    });
    let free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    candidates.find(free).expect("a free port")
}
