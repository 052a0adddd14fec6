"""Writes the fixtures of training: whole stages, step by step, with the rows they are trained on.

    python worker/tests/reference/make_training.py [worker/tests/fixtures/training]

`pictures.jsonl` and `texts.jsonl` are rows as a user would import them; every step of a case sees all
rows of its files once, so that the order of the rows is of no account. A word is a number, and the
number of its token. `base.safetensors` holds the weights that all cases share, `CASE.safetensors` the
others: `weight/*` before the first step, `grad/*` of the first step after clipping, `final/*` after
the last one, and for each step `output/loss` and its parts, `output/grad_norm`, `output/lr`; a case of
a single step has no rate and no final weights. The `case` entry of its metadata is JSON: the job, and the
files of its rows.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from make_fixtures import MODEL, VOCAB, randomize, shapes
from mks2_reference import IGNORE, MKS2, Config, Experts, schedule
from PIL import Image
from safetensors.torch import save_file

TOKENS, SIDE = 9, 12
BEGIN, END, PAD = 1, 2, 0
PICTURED = "pictures.jsonl"
UNPICTURED = "texts.jsonl"
# Clips some steps of a case, and not others.
CLIP_NORM = 0.8
OPTIMIZER = {"lr": 3e-3, "min_lr_ratio": 0.1, "warmup_steps": 6, "weight_decay": 0.1}
OPTIMIZER |= {"clip_norm": CLIP_NORM}
MASK = 2**64 - 1


# --- rows -----------------------------------------------------------------------------------


def words(random: np.random.Generator, count: int) -> str:
    return " ".join(str(word) for word in random.integers(3, VOCAB, count))


def make_rows(out: Path) -> None:
    random = np.random.default_rng(5)
    pictured, unpictured = [], []
    for number, length in enumerate([3, 5, 2, 10, 4, 6, 1, 7]):
        name = f"picture-{number}.png"
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out / name)
        row = {"key": f"p{number}", "image": name, "caption": words(random, length)}
        row |= {"name": words(random, 2), "question": words(random, 1 + number % 4)}
        pictured.append(row | {"answer": words(random, 1 + number % 3)})
    for number, length in enumerate([2, 8, 3, 4]):
        row = {"key": f"t{number}", "question": words(random, length)}
        unpictured.append(row | {"answer": words(random, 1 + number)})
    for file, rows in ((PICTURED, pictured), (UNPICTURED, unpictured)):
        (out / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(out: Path, files: list) -> list:
    lines = [line for file in files for line in (out / file).read_text().splitlines()]
    return [json.loads(line) | {"index": index} for index, line in enumerate(lines)]


def pixels_of(out: Path, row: dict) -> torch.Tensor | None:
    if "image" not in row:
        return None
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    levels = torch.from_numpy(np.array(Image.open(out / row["image"]))).permute(2, 0, 1)
    return (levels / 255 - mean) / std


# --- texts ----------------------------------------------------------------------------------


def stirred(number: int) -> int:
    """One number of the SplitMix64 stream that begins at `number`."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def chosen(templates: list, row: dict, seed: int, step: int, purpose: int) -> str:
    """The template that belongs to seed, step, row and purpose, with the row's fields."""
    bits = stirred(seed)
    for number in (step, row["index"], purpose):
        bits = stirred(bits ^ number)
    return templates[bits * len(templates) >> 64].format(**row)


def ids_of(text: str) -> list:
    return [int(word) for word in text.split()]


def sentence(text: str) -> list:
    return [BEGIN, *ids_of(text)][: TOKENS - 1] + [END]


def dialogue(question: str, answer: str, after_end: bool) -> tuple:
    """Ids, and what each position predicts: the answer and the end token behind it."""
    answer = ids_of(answer)
    front = [BEGIN, *ids_of(question)][: TOKENS - len(answer) - 1 - after_end] + [END] * after_end
    ids = torch.tensor([*front, *answer, END])
    labels = torch.full_like(ids, IGNORE)
    labels[len(front) - 1 : -1] = ids[len(front) :]
    return ids, labels


def padded(rows: list, filler: int) -> torch.Tensor:
    return torch.tensor([row + [filler] * (TOKENS - len(row)) for row in rows])


# --- steps ----------------------------------------------------------------------------------


def memory_losses(model: MKS2, rows: list, pixels: list, stage: dict, seed: int, step: int) -> dict:
    settings = stage["memory"]
    texts = [chosen(settings["captions"], row, seed, step, 1) for row in rows]
    queries = [chosen(settings["retrieval_texts"], row, seed, step, 2) for row in rows]
    captions, queries = [sentence(text) for text in texts], [sentence(text) for text in queries]
    # Nothing predicts the begin token.
    labels = [[IGNORE, *caption[1:]] for caption in captions]
    batch = SimpleNamespace(
        pixels=torch.stack(pixels),
        caption_ids=padded(captions, PAD),
        caption_labels=padded(labels, IGNORE),
        retrieval_ids=padded(queries, PAD),
        retrieval_end=torch.tensor([len(query) - 1 for query in queries]),
    )
    caption, retrieval = model.memory_loss(batch)
    loss = settings["caption_weight"] * caption + settings["retrieval_weight"] * retrieval
    return {"loss": loss, "caption": caption, "retrieval": retrieval}


def experts_losses(model: MKS2, rows: list, pixels: list, stage: dict, *_) -> dict:
    settings = stage["experts"]
    sees = settings["pictures"]
    batch = []
    for row, picture in zip(rows, pixels):
        spoken = dialogue(row["question"], row["answer"], settings["answer_after_end"])
        batch.append((picture if sees else None, *spoken))
    loss = model.dialogues_loss(batch)
    return {"loss": loss, "language": loss}


def train(model: MKS2, losses_of, rows: list, pixels: list, job: dict) -> dict:
    """What comes of the job's only stage."""
    stage, settings = job["stage"][0], job["stage"][0]["optimizer"]
    optimizer = model.adamw(lr=settings["lr"], weight_decay=settings["weight_decay"])
    rates = None
    if stage["steps"] > 1:
        ratio, warmup = settings["min_lr_ratio"], settings["warmup_steps"]
        rates = schedule(optimizer, stage["steps"], warmup, ratio)
    trained = model.trained()
    course, gradients = {}, {}
    for step in range(stage["steps"]):
        optimizer.zero_grad(set_to_none=True)
        losses = losses_of(model, rows, pixels, stage, job["seed"], step)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), settings["clip_norm"])
        told = losses | {"grad_norm": norm}
        if rates:
            told["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
        for name, value in told.items():
            course.setdefault(name, []).append(value.detach().float())
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in trained.items()}
        optimizer.step()
        if rates:
            rates.step()
    output = {name: torch.stack(values) for name, values in course.items()}
    is_clipped = output["grad_norm"] > CLIP_NORM
    assert not rates or is_clipped.any() and not is_clipped.all()
    return {"output": output, "grad": gradients, "final": trained if rates else {}}


# --- cases ----------------------------------------------------------------------------------


def built(model: dict, seed: int, base: dict) -> MKS2:
    mks2 = MKS2(Config.from_json(model, VOCAB))
    randomize(mks2, seed)
    tied = model["decoder"]["tie_word_embeddings"]
    shared = {name: p for name, p in base.items() if not (tied and name.startswith("lm_head"))}
    mks2.load_state_dict(shared, strict=False)
    return mks2


def write(out: Path, name: str, mks2: MKS2, base: dict, job: dict, files: list) -> None:
    """Trains the case and writes it. The job is the test's too, but for lanes and data."""
    before = {n: p.detach().clone() for n, p in mks2.named_parameters() if n not in base}
    losses_of = memory_losses if job["stage"][0]["kind"] == "memory" else experts_losses
    rows = read_rows(out, files)
    pixels = [pixels_of(out, row) for row in rows]
    groups = {"weight": before} | train(mks2, losses_of, rows, pixels, job)
    tensors = {
        f"{group}/{key}": value.detach().contiguous()
        for group, values in groups.items()
        for key, value in values.items()
    }
    case = {"vocab_size": VOCAB, "job": job, "files": files}
    save_file(tensors, out / f"{name}.safetensors", metadata={"case": json.dumps(case)})
    losses = groups["output"]["loss"]
    print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}")


def job_of(model: dict, rows: int, steps: int, stage: dict) -> dict:
    optimizer = OPTIMIZER if steps > 1 else OPTIMIZER | {"warmup_steps": 0}
    whole = {"name": "trained", "steps": steps, "batch_size": rows, "optimizer": optimizer}
    return {"name": "training", "seed": 11, "model": model, "stage": [whole | stage]}


def memory_case(out: Path, name: str, base: dict, steps: int, seed: int, settings, **changes) -> None:
    model = shapes(**changes | {"decoder": changes.get("decoder", {}) | {"max_text_tokens": TOKENS}})
    mks2 = built(model, seed, base)
    mks2.begin_memory_stage("trained")
    for part in (mks2.memory, mks2.bridge, mks2.retrieval):
        randomize(part, seed)
    memory = {"captions": ["{caption}", "{name} {caption}", "{name} 7"]}
    memory |= {"retrieval_texts": ["{caption}", "{question} {caption}"]} | settings
    job = job_of(model, 8, steps, {"kind": "memory", "memory": memory})
    write(out, name, mks2, base, job, [PICTURED])


def experts_case(
    out: Path, name: str, base: dict, steps: int, seed: int, settings, files, **changes
) -> None:
    model = shapes(**changes | {"decoder": changes.get("decoder", {}) | {"max_text_tokens": TOKENS}})
    mks2 = built(model, seed, base)
    for memory in settings.get("memories", []):
        mks2.add_memory(memory)
    randomize(mks2.memory, seed)
    if settings["pictures"]:
        mks2.add_bridge()
        randomize(mks2.bridge, seed)
    known = {key: value for key, value in settings.items() if key in Experts.__dataclass_fields__}
    mks2.begin_experts_stage(Experts(**known))
    randomize(mks2.experts, seed, scale=0.5)
    rows = len(read_rows(out, files))
    job = job_of(model, rows, steps, {"kind": "experts", "experts": settings})
    write(out, name, mks2, base, job, files)


def main() -> None:
    here = Path(__file__).resolve().parent
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "fixtures/training"
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    make_rows(out)
    shared = MKS2(Config.from_json(MODEL, VOCAB))
    randomize(shared, 20)
    base = {name: p.detach().clone() for name, p in shared.named_parameters()}
    tensors = {f"weight/{name}": p for name, p in base.items()}
    save_file(tensors, out / "base.safetensors", metadata={"case": json.dumps({"vocab_size": VOCAB})})

    tied = {"tie_word_embeddings": True}
    fixed = {"learn_temperature": False, "project_images": False, "dim": 10, "extra_blocks": [2]}
    equal, weighed = ({"caption_weight": c, "retrieval_weight": r} for c, r in ((1, 1), (0.7, 1.6)))
    both, extra = [PICTURED, UNPICTURED], {"extra_blocks": [1]}
    rank = {"lora_rank": 3, "lora_alpha": 6.0, "answer_after_end": False}
    mixed = {"memories": ["see", "hear"], "adapt_attention": True, "pictures": True, "router_bias": 0.5}
    some = {"adapter_blocks": [2, 3], "router_blocks": [1, 3]}
    text = {"memories": ["see"], "pictures": False, "answer_after_end": True, "router_blocks": [3]}
    alone = {"memories": [], "pictures": False, "adapt_attention": True}
    gated = {"form": "gated"}

    memory_case(out, "memory", base, 50, 21, equal, retrieval=extra)
    memory_case(out, "memory_fixed", base, 1, 22, weighed, decoder=tied, memory=gated, retrieval=fixed)
    experts_case(out, "experts", base, 50, 23, rank | mixed | some, both, memory=gated)
    experts_case(out, "experts_text", base, 1, 24, rank | text, both, decoder=tied)
    experts_case(out, "experts_lora", base, 1, 25, rank | alone, [UNPICTURED])


if __name__ == "__main__":
    main()
