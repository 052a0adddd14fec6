//! Ports for processes that must know each other's before they start.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports that the system does not give to outgoing connections by itself.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// An address of the loopback that nothing listens on. A process is given every other one before it
/// is given the same one again.
///
/// # Errors
/// No port is free.
pub(crate) fn free() -> std::io::Result<SocketAddr> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let width = PORTS.end - PORTS.start;
    // Two programs at a time shall not ask for the same ones.
    let first = std::process::id().wrapping_mul(6_181) % u32::from(width);
    for _ in PORTS {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        let place = (first + u32::from(given)) % u32::from(width);
        let port = PORTS.start + u16::try_from(place).unwrap_or_default();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(std::io::ErrorKind::AddrInUse.into())
}
