//! The memory of this process.

/// A line of `/proc/self/status`, in bytes.
pub(super) fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or_default() << 10
}

/// From here on the peak, `VmHWM:`, is measured anew.
pub(super) fn reset_peak() {
    // Where the system does not allow it, the peak includes the start.
    let _refused = std::fs::write("/proc/self/clear_refs", "5");
}
