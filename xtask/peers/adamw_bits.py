"""Bits of PyTorch's fused AdamW, as a peer for `mks2-worker bench adamw-bits`.

    python adamw_bits.py --len 100003 --steps 5

Prints one line of JSON with blake3 digests of weights and moments, which must be equal to ours.
Needs PyTorch and either the `blake3` module or the `b3sum` program.
"""

import argparse
import json
import subprocess

import numpy as np
import torch


def digest(tensor):
    data = tensor.detach().numpy().astype("<f4").tobytes()
    try:
        import blake3
    except ImportError:
        return subprocess.run(["b3sum", "--no-names"], input=data, stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    return blake3.blake3(data).hexdigest()


def main(args):
    at = np.arange(args.len, dtype=np.int64)
    start = (at % 1009).astype(np.float32) / np.float32(1009) - np.float32(0.5)
    weights = torch.nn.Parameter(torch.from_numpy(start))
    optimizer = torch.optim.AdamW(
        [weights], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
    )
    for step in range(args.steps):
        grad = ((at * 31 + step * 17) % 2003).astype(np.float32) / np.float32(2003) - np.float32(0.5)
        weights.grad = torch.from_numpy(grad)
        optimizer.step()
    state = optimizer.state[weights]
    print(json.dumps({
        "bench": "adamw-bits", "len": args.len, "steps": args.steps, "weights": digest(weights),
        "exp_avg": digest(state["exp_avg"]), "exp_avg_sq": digest(state["exp_avg_sq"]),
    }))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--len", type=int, default=100003)
    parser.add_argument("--steps", type=int, default=5)
    main(parser.parse_args())
