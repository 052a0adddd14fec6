//! What the machine must have before anything is fetched.

use std::path::Path;

use crate::fault::{Fault, Outcome};
use crate::{places, shell};

/// Wheels and unpacked files lie side by side for a moment: 519 and 437 MiB.
const SPACE_MIB: u64 = 1100;

/// A C++ compiler, for the bindings to libtorch.
pub(super) fn compiler() -> Outcome {
    let own = std::env::var("CXX").ok().filter(|name| !name.is_empty());
    let names = own
        .as_deref()
        .map_or_else(|| vec!["c++", "g++", "clang++"], |name| vec![name]);
    // CXX may be a wrapper with its compiler as an argument: "ccache g++".
    let first = |name: &str| name.split_whitespace().next().map(str::to_owned);
    if names
        .iter()
        .filter_map(|name| first(name))
        .any(|name| places::which(&name).is_some())
    {
        return Ok(());
    }
    Err(Fault::environment(
        "no C++ compiler is in PATH: install one, on Debian or Ubuntu `sudo apt install g++`",
    ))
}

/// The pinned wheels are for one platform.
pub(super) fn platform() -> Outcome {
    if cfg!(all(
        target_os = "linux",
        target_arch = "x86_64",
        target_env = "gnu"
    )) {
        return Ok(());
    }
    Err(Fault::environment(
        "the pinned libtorch is for Linux on x86-64 with glibc: on this machine install torch \
         2.11.0 for Python and set LIBTORCH_USE_PYTORCH=1",
    ))
}

/// Room for wheels and unpacked files. A `df` that cannot answer is no obstacle.
pub(super) fn space(folder: &Path) -> Outcome {
    let Ok(text) = shell::read(shell::program("df").arg("-Pk").arg(folder)) else {
        return Ok(());
    };
    match free_mib(&text) {
        Some(free) if free < SPACE_MIB => Err(Fault::environment(format!(
            "only {free} MiB are free at {}, but {SPACE_MIB} MiB are needed: free some, or set \
             XDG_CACHE_HOME to a larger disk",
            folder.display()
        ))),
        _ => Ok(()),
    }
}

/// The fourth column of the second line of `df -Pk`.
fn free_mib(text: &str) -> Option<u64> {
    let kib: u64 = text
        .lines()
        .nth(1)?
        .split_whitespace()
        .nth(3)?
        .parse()
        .ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_read_from_the_portable_format() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n\
                    /dev/vda 263174212 19000000 76000000 21% /\n";
        assert_eq!(free_mib(text), Some(74218));
        assert_eq!(free_mib("nonsense"), None);
    }
}
