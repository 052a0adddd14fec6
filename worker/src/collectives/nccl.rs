//! Collectives between GPUs by NCCL, beside a [`Mesh`] for everything small.
//!
//! Messages, votes and buffers in host memory go over the mesh, whose connections also tell at once
//! when a peer dies. Tensors on the GPU go through NCCL, on libtorch's current stream (the legacy
//! default stream), so they are ordered after the kernels that made them without further events.
//! The communicator is non-blocking: this thread polls, looks at the abort flag and the deadline,
//! and aborts the communicator when it has to give up. It never waits inside NCCL.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::tcp::Mesh;
use super::{AbortFlag, Collective, CollectiveError, EachBlock, Limits, Result, schedule};
use crate::flat::FlatError;

mod api;

use api::{Api, Comm, FLOAT32, INT64, SUM, UniqueId};

/// Pause between two looks at a communicator that is busy.
const POLL: Duration = Duration::from_micros(50);

/// A mesh whose GPU tensors are exchanged by NCCL.
pub struct NcclMesh {
    mesh: Mesh,
    api: Api,
    comm: Comm,
    device: usize,
    abort: AbortFlag,
    limits: Limits,
    broken: Option<String>,
}

impl NcclMesh {
    /// Joins the ranks of `mesh` to one communicator, each with its own GPU. Collective: every
    /// rank calls it. libtorch's CUDA part must be loaded.
    ///
    /// # Errors
    /// [`CollectiveError::Nccl`] when the library is missing or refuses, or the deadline for
    /// connecting passes; [`CollectiveError::Aborted`].
    pub fn new(mut mesh: Mesh, device: usize, limits: &Limits, abort: &AbortFlag) -> Result<Self> {
        let api = Api::find()?;
        let mine = if mesh.rank() == 0 {
            api.unique_id()?.0.to_vec()
        } else {
            Vec::new()
        };
        let bytes = mesh.broadcast(0, &mine)?;
        let id = <[u8; 128]>::try_from(bytes.as_slice()).map_err(|_| {
            CollectiveError::Nccl(format!(
                "rank 0 sent an identifier of {} bytes",
                bytes.len()
            ))
        })?;
        let comm = api.begin_init(device, mesh.world(), UniqueId(id), mesh.rank())?;
        tracing::debug!(
            version = api.version()?,
            device,
            rank = mesh.rank(),
            "joining NCCL communicator"
        );
        let mut joined = Self {
            mesh,
            api,
            comm,
            device,
            abort: abort.clone(),
            limits: limits.clone(),
            broken: None,
        };
        let until = limits.connect;
        joined.settle(until, "joining the communicator", |api, comm| {
            api.is_settled(comm)
        })?;
        Ok(joined)
    }

    /// The version of the NCCL in this process, as 22809 for 2.28.9.
    ///
    /// # Errors
    /// [`CollectiveError::Nccl`] when the library refuses.
    pub fn version(&self) -> Result<i32> {
        self.api.version()
    }

    /// Polls until `done`, an error, an abort or the deadline. An error ends the communicator.
    fn settle(
        &mut self,
        limit: Duration,
        during: &str,
        done: impl Fn(&Api, Comm) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        let result = loop {
            // An asynchronous error counts first: after it the stream may never end.
            match self
                .api
                .is_settled(self.comm)
                .and_then(|_| done(&self.api, self.comm))
            {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            if let Err(error) = self.abort.check() {
                break Err(error);
            }
            if start.elapsed() > limit {
                let seconds = limit.as_secs_f64();
                break Err(CollectiveError::Nccl(format!(
                    "{during} has not ended within {seconds:.1} s"
                )));
            }
            std::thread::sleep(POLL);
        };
        self.end_after(result)
    }

    /// Keeps an error for all later calls and ends the communicator.
    fn end_after(&mut self, result: Result<()>) -> Result<()> {
        if let Err(error) = &result {
            self.broken = Some(error.to_string());
            self.close();
        }
        result
    }

    fn close(&mut self) {
        let comm = std::mem::replace(&mut self.comm, std::ptr::null_mut());
        if !comm.is_null() {
            self.api.abort(comm);
        }
    }

    /// Runs `calls` as one group on the default stream and waits for the GPU.
    fn run(&mut self, during: &str, calls: impl FnOnce(&Api, Comm) -> Result<()>) -> Result<()> {
        if let Some(reason) = &self.broken {
            return Err(CollectiveError::Broken(reason.clone()));
        }
        let issued = self.api.group(self.comm, || calls(&self.api, self.comm));
        self.end_after(issued)?;
        let limit = self.limits.silence;
        self.settle(limit, during, |api, comm| {
            Ok(api.is_settled(comm)? && api.is_finished()?)
        })
    }

    /// The address of a contiguous 1-D tensor of `kind` on this rank's GPU.
    fn address(&self, tensor: &Tensor, kind: Kind) -> Result<*mut u8> {
        let here = tensor.device() == Device::Cuda(self.device);
        if here && tensor.kind() == kind && tensor.dim() == 1 && tensor.is_contiguous() {
            return Ok(tensor.data_ptr().cast());
        }
        Err(FlatError::Memory {
            expected: kind,
            found: format!("{tensor:?}"),
        }
        .into())
    }
}

impl Collective for NcclMesh {
    fn rank(&self) -> usize {
        self.mesh.rank()
    }

    fn world(&self) -> usize {
        self.mesh.world()
    }

    fn sequence(&self) -> u64 {
        self.mesh.sequence()
    }

    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.mesh.all_gather(mine)
    }

    fn multicast(&mut self, root: usize, to: &[usize], mine: &[u8]) -> Result<Vec<u8>> {
        self.mesh.multicast(root, to, mine)
    }

    fn reduce_scatter_i64(&mut self, data: &[i64], each: &mut EachBlock<'_>) -> Result<()> {
        self.mesh.reduce_scatter_i64(data, each)
    }

    fn all_gather_f32(&mut self, data: &mut [f32]) -> Result<()> {
        self.mesh.all_gather_f32(data)
    }

    fn all_reduce_f32(&mut self, data: &mut [f32]) -> Result<()> {
        self.mesh.all_reduce_f32(data)
    }

    /// One reduction per shard to its owner, in one group: shards may differ in length.
    fn reduce_scatter_tensor(&mut self, data: &Tensor) -> Result<Tensor> {
        let (len, world, rank) = (data.numel(), self.world(), self.rank());
        let source = self.address(data, Kind::Int64)?;
        let own = schedule::shard(len, world, rank);
        let out = Tensor::f_empty([own.len() as i64], (Kind::Int64, data.device()))
            .map_err(FlatError::from)?;
        let target: *mut c_void = out.data_ptr();
        self.run("an int64 reduce-scatter", |api, comm| {
            for root in 0..world {
                let shard = schedule::shard(len, world, root);
                // SAFETY: the shard lies inside `data`; the root's own shard has the length of
                // `out`, which other ranks' calls do not write. Both live until the GPU is done.
                let code = unsafe {
                    let from = source.add(8 * shard.start).cast_const().cast();
                    (api.reduce)(
                        from,
                        target,
                        shard.len(),
                        INT64,
                        SUM,
                        root as i32,
                        comm,
                        std::ptr::null_mut(),
                    )
                };
                api.check(code, comm)?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn all_gather_tensor(&mut self, data: &mut Tensor) -> Result<()> {
        let (len, world) = (data.numel(), self.world());
        let address = self.address(data, Kind::Float)?;
        self.run("an fp32 all-gather", |api, comm| {
            for root in 0..world {
                let shard = schedule::shard(len, world, root);
                // SAFETY: the shard lies inside `data`, in place; it lives until the GPU is done.
                let code = unsafe {
                    let at = address.add(4 * shard.start);
                    (api.broadcast)(
                        at.cast(),
                        at.cast(),
                        shard.len(),
                        FLOAT32,
                        root as i32,
                        comm,
                        std::ptr::null_mut(),
                    )
                };
                api.check(code, comm)?;
            }
            Ok(())
        })
    }

    fn all_reduce_tensor(&mut self, data: &mut Tensor) -> Result<()> {
        let (len, address) = (data.numel(), self.address(data, Kind::Float)?);
        self.run("an fp32 all-reduce", |api, comm| {
            // SAFETY: in place over the whole of `data`, which lives until the GPU is done.
            let code = unsafe {
                (api.all_reduce)(
                    address.cast(),
                    address.cast(),
                    len,
                    FLOAT32,
                    SUM,
                    comm,
                    std::ptr::null_mut(),
                )
            };
            api.check(code, comm)
        })
    }
}

impl Drop for NcclMesh {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_nccl_the_refusal_says_what_is_missing() {
        let refused = NcclMesh::new(Mesh::alone(), 0, &Limits::default(), &AbortFlag::new());
        let error = refused.map(drop).unwrap_err();
        assert!(error.to_string().contains("libnccl.so.2"), "{error}");
    }
}
