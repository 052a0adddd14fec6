//! Where a worker computes.

use mks2_proto::failure::Failure;
use tch::Device;

/// The device that a job's `device` means for the worker with this place on its machine: `cpu`,
/// `cuda` (GPU number `local_rank`), or `cuda:N`.
///
/// # Errors
/// When CUDA is asked for where there is none, or for a GPU that the machine has not.
pub fn choose(device: &str, local_rank: u32) -> Result<Device, Failure> {
    choose_for(By::Job, device, local_rank)
}

/// The device that a command's `--device` means.
///
/// # Errors
/// As [`choose`].
pub fn choose_by_option(device: &str) -> Result<Device, Failure> {
    choose_for(By::Option, device, 0)
}

/// Who names a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The job that is trained.
    Job,
    /// Somebody who asks a model.
    Option,
}

impl By {
    /// What helps where there is no such GPU.
    fn cure(self, first: &str) -> String {
        match self {
            Self::Job => format!("{first}, or train with --set device=cpu"),
            Self::Option => format!("{first}, or compute on the CPU with --device cpu"),
        }
    }
}

fn choose_for(by: By, device: &str, local_rank: u32) -> Result<Device, Failure> {
    let number = match device {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => local_rank as usize,
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| {
                Failure::settings(
                    format!("'{other}' is no device"),
                    "a device is cpu, cuda or cuda:N",
                    match by {
                        By::Job => "set `device` in the job file to one of these",
                        By::Option => "name one of these with --device",
                    },
                )
            })?,
    };
    crate::cuda::load().map_err(|mut failure| {
        failure.cure = by.cure(&failure.cure);
        failure
    })?;
    let found = tch::Cuda::device_count().max(0) as usize;
    if number >= found {
        let why = format!("libtorch sees {found} CUDA devices on this machine");
        let (what, cure) = match by {
            By::Job => (
                format!("the job asks for '{device}', and this worker for GPU {number}"),
                "start as many workers as there are GPUs",
            ),
            By::Option => (
                format!("there is no GPU {number} for --device {device}"),
                "name another one",
            ),
        };
        return Err(Failure::environment(what, why, by.cure(cure)));
    }
    Ok(Device::Cuda(number))
}

/// What a result was computed with, for its record: `mks2 0.1.0, libtorch 2.11.0, cpu, x86_64`.
#[must_use]
pub fn made_with(device: Device) -> String {
    let kind = match device {
        Device::Cuda(_) => "cuda",
        _ => "cpu",
    };
    format!(
        "mks2 {}, libtorch {}, {kind}, {}",
        env!("CARGO_PKG_VERSION"),
        crate::dispatch::libtorch_version(),
        std::env::consts::ARCH,
    )
}

/// Sets libtorch's threads for this process: they are part of what fixes the bits on a CPU.
pub fn prepare(threads: u32) {
    tch::set_num_threads(threads.max(1) as i32);
    tch::set_num_interop_threads(1);
}

/// Makes `device` repeat its bits, which the exact reduction's promise needs. A CPU does by itself,
/// for a fixed number of threads.
///
/// # Errors
/// Exit 6 when the environment does not allow it; see [`crate::cuda::repeat_bits`].
pub fn repeat_bits(device: Device) -> Result<(), Failure> {
    match device {
        Device::Cuda(_) => crate::cuda::repeat_bits(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_nonsense_is_refused() {
        assert_eq!(choose("cpu", 3).unwrap(), Device::Cpu);
        assert_eq!(choose("tpu", 0).unwrap_err().exit.code(), 3);
        assert_eq!(choose("cuda:x", 0).unwrap_err().exit.code(), 3);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        let failure = choose("cuda:99", 0).unwrap_err();
        assert_eq!(failure.exit.code(), 6);
        assert!(failure.to_string().contains("CUDA"), "{failure}");
        assert!(failure.cure.contains("--set device=cpu"), "{failure}");
        // Who only asks has no job.
        let failure = choose_by_option("cuda:99").unwrap_err().to_string();
        assert!(failure.contains("--device cpu"), "{failure}");
        assert!(
            !failure.contains("job") && !failure.contains("train"),
            "{failure}"
        );
        let failure = choose_by_option("tpu").unwrap_err();
        assert!(failure.cure.contains("--device"), "{failure}");
    }
}
