"""What `torch.distributed.checkpoint.async_save` keeps its caller from, as a peer for
`mks2-worker bench save`.

    python async_save.py --mebibytes 512 --repetitions 5 --step-ms 500 --folder FOLDER

The state is 64 parameters and their two moments in fp32. Each save is followed by steps of compute
and of AdamW; the same as on our side. Prints one line of JSON: medians for each way of staging that a CPU
allows, and the peak of memory beside the state.

- default: async_save without a word, which copies before it returns
- behind: a stager that copies on a thread; the caller waits for it before the next update. It is a
  new one for each save: in PyTorch 2.11 one serves once
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

TENSORS = 64
SIDE = 512
STEPS_BETWEEN = 6


def memory(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def compute(factor, seconds):
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        torch.mm(factor, factor)


def stager(way):
    if way == "default":
        return None
    return DefaultStager(StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_non_blocking_copy=False,
    ))


def measure(args, way):
    elements = args.mebibytes * (1 << 20) // 12 // TENSORS
    weights = [torch.randn(1, elements, requires_grad=True) for _ in range(TENSORS)]
    for weight in weights:
        weight.grad = torch.randn(1, elements)
    optimizer = torch.optim.AdamW(weights, fused=True)
    optimizer.step()
    state = {}
    for number, weight in enumerate(weights):
        of = optimizer.state[weight]
        state[f"{number:02}.weight"] = weight.detach()
        state[f"{number:02}.exp_avg"] = of["exp_avg"]
        state[f"{number:02}.exp_avg_sq"] = of["exp_avg_sq"]
    factor = torch.randn(SIDE, SIDE)
    gc.collect()
    resident = memory("VmRSS:")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    stops, uploads = [], []
    for repetition in range(args.repetitions + 1):
        folder = os.path.join(args.folder, f"{way}-{repetition}")
        staging = stager(way)
        began = time.perf_counter()
        saved = dcp.async_save(state, checkpoint_id=folder, async_stager=staging)
        stop = time.perf_counter() - began
        for _ in range(STEPS_BETWEEN):
            compute(factor, args.step_ms / 1e3)
            began = time.perf_counter()
            if way == "behind":
                saved.staging_completion.result()
            stop += time.perf_counter() - began
            optimizer.step()
        (saved.upload_completion if way == "behind" else saved).result()
        if repetition > 0:
            stops.append(stop)
        shutil.rmtree(folder)
    return statistics.median(stops) * 1e3, memory("VmHWM:") - resident


def main(args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=0, world_size=1)
    found = {"bench": "async_save", "torch": torch.__version__, "repetitions": args.repetitions}
    for way in ("default", "behind"):
        blocked_ms, extra_bytes = measure(args, way)
        found[way] = {"blocked_ms": blocked_ms, "extra_bytes": extra_bytes}
    print(json.dumps(found))
    dist.destroy_process_group()
    shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=500)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--port", type=int, default=29732)
    main(parser.parse_args())
