"""All-reduce of fp32 with Gloo in PyTorch, as a peer for `mks2-worker bench collectives`.

    python gloo_allreduce.py --world 2 --bytes 67108864 --repetitions 20

Starts the ranks itself and prints one line of JSON with the median in milliseconds (rank 0).
"""

import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(rank, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=args.world)
    values = torch.empty(args.bytes // 4)
    times = []
    for repetition in range(args.repetitions + 3):
        values.fill_(1.0)
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        elapsed = time.perf_counter() - start
        assert values[-1].item() == args.world
        if repetition >= 3:
            times.append(elapsed)
    if rank == 0:
        print(json.dumps({
            "bench": "gloo", "world": args.world, "bytes": args.bytes, "torch": torch.__version__,
            "repetitions": args.repetitions, "all_reduce_ms": statistics.median(times) * 1e3,
        }))
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--port", type=int, default=29731)
    arguments = parser.parse_args()
    mp.spawn(run, args=(arguments,), nprocs=arguments.world)
