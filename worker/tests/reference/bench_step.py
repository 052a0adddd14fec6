"""Times one optimizer step of both stages in eager PyTorch, for the shapes of a job.

    python bench_step.py '{"model": {...}, "vocab_size": 2048, "experts": {...}}' \
        --batch 64 --tokens 32 --answer-tokens 2 --threads 1 --steps 20

The first argument is JSON or the path of a file that holds it: the job's `[model]` table, the
vocabulary, and the settings of its experts stage (optional; `memories` names the memories).
A step is a forward and backward pass, clipping and fused AdamW. `--chunks N` runs the batch as N
microbatches whose gradients add up, which needs less memory; 1, the whole batch at once, is the
ordinary way. Texts are random, of random lengths from half of `--tokens` on; the same seed gives
the same batch. Prints one line of JSON: the median of `--steps` steps after `--warmup`.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from mks2_reference import IGNORE, MKS2, Config, Experts, experts_step, memory_step


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="JSON, or the path of a JSON file")
    parser.add_argument("--stages", nargs="+", default=["memory", "experts"])
    parser.add_argument("--batch", type=int, default=64, help="samples of a step")
    parser.add_argument("--tokens", type=int, default=32, help="text tokens of a sample")
    parser.add_argument("--answer-tokens", type=int, default=2, help="labelled tokens of a sample")
    parser.add_argument("--threads", type=int, default=1, help="threads of libtorch")
    parser.add_argument("--chunks", type=int, default=1, help="microbatches of a step")
    parser.add_argument("--caption-share", type=float, default=1.0, help="of each microbatch")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="frozen weights in bf16, and autocast")
    return parser.parse_args()


def read_config(text: str) -> dict:
    return json.loads(text if text.lstrip().startswith("{") else Path(text).read_text())


def memory_batch(c: Config, args) -> SimpleNamespace:
    b, t, side = args.batch, args.tokens, c.vision.image_size
    lengths = torch.randint(t // 2, t + 1, (b,))
    captions = torch.randint(c.vocab_size, (b, t))
    labels = captions.masked_fill(torch.arange(t) >= lengths[:, None], IGNORE)
    return SimpleNamespace(
        pixels=torch.randn(b, 3, side, side),
        caption_ids=captions,
        caption_labels=labels,
        retrieval_ids=captions,
        retrieval_end=lengths - 1,
    )


def experts_batch(c: Config, args) -> SimpleNamespace:
    b, t = args.batch, args.tokens
    last = torch.randint(t // 2, t, (b,))
    ids = torch.randint(c.vocab_size, (b, t))
    places = torch.arange(t)
    answer = (places <= last[:, None]) & (places > last[:, None] - args.answer_tokens)
    return SimpleNamespace(ids=ids, labels=ids.masked_fill(~answer, IGNORE))


def parts(batch: SimpleNamespace, chunks: int) -> list[SimpleNamespace]:
    split = {name: value.chunk(chunks) for name, value in vars(batch).items()}
    return [SimpleNamespace(**dict(zip(split, values))) for values in zip(*split.values())]


def update(model: MKS2, optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.trained().values(), 1.0)
    optimizer.step()


def captioned(part: SimpleNamespace, share: float) -> SimpleNamespace:
    """The microbatch with the captions of its first samples alone."""
    count = max(1, round(share * len(part.pixels)))
    short = {name: getattr(part, name)[:count] for name in ("caption_ids", "caption_labels")}
    return SimpleNamespace(**vars(part) | short)


def chunked_memory_step(model: MKS2, optimizer, batch, chunks: int, caption_share: float) -> float:
    """All pictures are seen first, so that every microbatch has the whole batch's negatives."""
    if chunks == 1 and caption_share == 1:
        return memory_step(model, optimizer, batch)
    optimizer.zero_grad(set_to_none=True)
    microbatches = [captioned(part, caption_share) for part in parts(batch, chunks)]
    labelled = sum((part.caption_labels != IGNORE).sum() for part in microbatches)
    total, first = 0.0, 0
    with torch.no_grad():
        seen = [model.see(part.pixels) for part in microbatches]
    images = torch.cat([features for _, features in seen])
    for part, (patches, _) in zip(microbatches, seen):
        described = patches[: len(part.caption_ids)]
        caption, retrieval = model.memory_loss(part, (described, images), first)
        share = (part.caption_labels != IGNORE).sum() / labelled
        loss = caption * share + retrieval * len(patches) / len(images)
        loss.backward()
        total, first = total + loss.item(), first + len(patches)
    update(model, optimizer)
    return total


def chunked_experts_step(model: MKS2, optimizer, batch, chunks: int) -> float:
    if chunks == 1:
        return experts_step(model, optimizer, batch)
    optimizer.zero_grad(set_to_none=True)
    total, labelled = 0.0, (batch.labels != IGNORE).sum()
    for part in parts(batch, chunks):
        loss = model.experts_loss(part) * ((part.labels != IGNORE).sum() / labelled)
        loss.backward()
        total += loss.item()
    update(model, optimizer)
    return total


def timed(model: MKS2, step, args) -> dict:
    if args.bf16:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        fp32_step = step

        def step():
            with torch.autocast("cpu", torch.bfloat16):
                return fp32_step()

    for _ in range(args.warmup):
        step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        "step_seconds": median,
        "step_seconds_min": min(seconds),
        "samples_per_second": args.batch / median,
        "loss": loss,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    given = read_config(args.config)
    config = Config.from_json(given["model"], given["vocab_size"])
    known = Experts.__dataclass_fields__
    settings = {k: v for k, v in given.get("experts", {}).items() if k in known}
    result = {"torch": torch.__version__} | {
        name: getattr(args, name) for name in ("threads", "batch", "tokens", "chunks", "caption_share")
    }
    if "memory" in args.stages:
        model = MKS2(config)
        optimizer = model.prepare_memory_stage("see")
        batch = memory_batch(config, args)
        result["memory"] = timed(
            model,
            lambda: chunked_memory_step(
                model, optimizer, batch, args.chunks, args.caption_share
            ),
            args,
        )
    if "experts" in args.stages:
        model = MKS2(config)
        chosen = Experts(**({"memories": ["see"]} | settings))
        for name in chosen.memories:
            model.add_memory(name)
        optimizer = model.prepare_experts_stage(chosen)
        batch = experts_batch(config, args)
        step = lambda: chunked_experts_step(model, optimizer, batch, args.chunks)  # noqa: E731
        result["experts"] = timed(model, step, args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
