//! Faults planted into the protocol, so that the simulator can prove that it finds them.

/// Whether a fault is planted. Never outside of this crate's own unit tests: there the name does
/// not exist, and what it guards is compiled away.
#[cfg(not(test))]
macro_rules! planted {
    ($fault:ident) => {
        false
    };
}

/// Whether a fault is planted in this thread.
#[cfg(test)]
macro_rules! planted {
    ($fault:ident) => {
        $crate::simulator::planted::is($crate::simulator::planted::Planted::$fault)
    };
}
