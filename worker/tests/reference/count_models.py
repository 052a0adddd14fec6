"""Counts parameters, operations and kept activations of the stages of jobs.

    python worker/tests/reference/count_models.py [proto/tests/fixtures/counts.json]

The reference's models are built on PyTorch's meta device, so that 13 billion parameters take no memory.
Operations are those that `torch.utils.flop_counter.FlopCounterMode` counts in the forward and
backward pass of one step over the whole batch: products of matrices, a multiplication and an addition
being two. Attention runs as plain products (`SDPBackend.MATH`), since the counter knows nothing of fused
kernels on this device: the whole square of positions counts, though half of it is masked. Every text is
as long as it may be, and a loss is on each of its tokens; every row has a picture where the stage sees
them. Of small models, which are computed for that, also the numbers that autograd keeps for the backward
pass.
"""

import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from mks2_reference import MKS2, Config, Experts, TextTower, clip_loss, view_loss
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[3]
PAPER = ["llama-2-7b", "llama-2-13b"]
SMALL = {
    "decoder": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_text_tokens": 24,
    },
    "vision": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 40,
    },
    "text_tower": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "memory": {"width": 56},
    "retrieval": {"dim": 32},
}
VOCAB = 300


def small(**changes) -> dict:
    return {name: values | changes.get(name, {}) for name, values in SMALL.items()}


def small_jobs() -> list:
    """Every branch of the model at least once."""
    fixed = {"learn_temperature": False, "project_images": False, "dim": 40}
    bootstrap = {"view_weight": 0.5, "view_temperature": 0.1}
    mixed = {"memories": ["a", "b"], "lora_rank": 4, "adapt_attention": True, "pictures": True}
    late = {"memories": ["a"], "lora_rank": 4, "adapter_blocks": [3], "router_blocks": [2]}
    cases = [
        ("memory", small(retrieval={"extra_blocks": [1, 2]}), {"kind": "memory"}),
        ("memory, gated", small(memory={"form": "gated"}, retrieval=fixed), {"kind": "memory"}),
        ("experts, mixed", small(memory={"form": "gated"}), {"kind": "experts", "experts": mixed}),
        ("experts, late", small(), {"kind": "experts", "experts": late}),
        (
            "experts, alone",
            small(decoder={"tie_word_embeddings": True}),
            {"kind": "experts", "experts": {"memories": [], "lora_rank": 4}},
        ),
        ("bootstrap", small(), {"kind": "bootstrap", "bootstrap": bootstrap}),
    ]
    jobs = []
    for name, model, stage in cases:
        stage = {"name": "m", "batch_size": 8} | stage
        jobs.append({"name": name, "vocab_size": VOCAB, "model": model, "stage": stage})
    return jobs


def paper_jobs() -> list:
    jobs = []
    for name in PAPER:
        job = tomllib.loads((ROOT / "examples/paper" / f"{name}.toml").read_text())
        shared = {"vocab_size": job["tokenizer"]["vocab_size"], "model": job["model"]}
        for stage in job["stage"]:
            if stage["kind"] in ("memory", "experts"):
                jobs.append({"name": f"{name}, {stage['name']}", **shared, "stage": stage})
    return jobs


# --- passes ---------------------------------------------------------------------------------


def text_loss(model: MKS2, states: torch.Tensor, count: int) -> torch.Tensor:
    """A loss on each of the last `count` positions."""
    logits = model.lm_head(states[:, -count:])
    labels = torch.zeros(logits.shape[:2], dtype=torch.int64)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def memory_pass(model: MKS2, b: int, t: int) -> torch.Tensor:
    ids = torch.zeros(b, t, dtype=torch.int64)
    with torch.no_grad():
        patches, images = model.see(torch.empty(b, 3, *[model.config.vision.image_size] * 2))
    words = model.model.embed_tokens(ids)
    last, _ = model.model(torch.cat([model.bridge(patches), words], dim=1), model.storing)
    caption = text_loss(model, last, t)
    last, after = model.model(words, model.storing)
    ends = torch.zeros(b, dtype=torch.int64)
    return caption + model.retrieval.loss(last, after, ends, images, 0)


def experts_pass(model: MKS2, b: int, t: int, pictures: bool) -> torch.Tensor:
    h = model.model.embed_tokens(torch.zeros(b, t, dtype=torch.int64))
    if pictures:
        with torch.no_grad():
            patches, _ = model.see(torch.empty(b, 3, *[model.config.vision.image_size] * 2))
            h = torch.cat([model.bridge(patches), h], dim=1)
    last, _ = model.model(h, model.collaborating)
    return text_loss(model, last, t)


def bootstrap_pass(model: MKS2, tower: TextTower, b: int, t: int) -> torch.Tensor:
    ids, ends = torch.zeros(b, t, dtype=torch.int64), torch.zeros(b, dtype=torch.int64)
    last, _ = model.model(model.model.embed_tokens(ids))
    pixels = torch.empty(b, 3, *[model.config.vision.image_size] * 2)
    first, second = model.see(pixels)[1], model.see(pixels)[1]
    contrastive = clip_loss(tower(ids, ends), first, tower.logit_scale)
    return text_loss(model, last, t) + contrastive + view_loss(first, second, 0.1)


def prepared(job: dict) -> SimpleNamespace:
    """The model of a stage, and its loss."""
    c = Config.from_json(job["model"], job["vocab_size"])
    model, stage, parts = MKS2(c), job["stage"], []
    b, t = stage["batch_size"], job["model"]["decoder"]["max_text_tokens"]
    if stage["kind"] == "memory":
        model.begin_memory_stage(stage["name"])
        loss = lambda: memory_pass(model, b, t)  # noqa: E731
    elif stage["kind"] == "experts":
        settings = stage["experts"]
        known = {k: v for k, v in settings.items() if k in Experts.__dataclass_fields__}
        for name in settings["memories"]:
            model.add_memory(name)
        pictures = settings.get("pictures", False)
        if pictures:
            model.add_bridge()
        model.begin_experts_stage(Experts(**known))
        loss = lambda: experts_pass(model, b, t, pictures)  # noqa: E731
    else:
        tower = TextTower(c)
        parts = list(tower.named_parameters())
        loss = lambda: bootstrap_pass(model, tower, b, t)  # noqa: E731
    return SimpleNamespace(parameters=[*model.named_parameters(), *parts], loss=loss)


# --- counts ---------------------------------------------------------------------------------


def module_of(name: str) -> str:
    first, *rest = name.split(".")
    modules = {"model": "decoder", "lm_head": "decoder"}
    modules |= {"vision_model": "vision", "visual_projection": "vision"}
    modules |= {"text_projection": "text_tower", "logit_scale": "text_tower"}
    return f"memory.{rest[0]}" if first == "memory" else modules.get(first, first)


def is_read(module: str, stage: dict) -> bool:
    """A mixture without pictures has no use for what sees them."""
    blind = stage["kind"] == "experts" and not stage["experts"].get("pictures", False)
    return not (blind and module in ("vision", "bridge"))


def kept_numbers(job: dict) -> int:
    """Numbers that autograd keeps of a sample between forward and backward, weights left out."""
    stage = prepared(job)
    weights = {p.untyped_storage().data_ptr() for _, p in stage.parameters}
    kept, sizes = [], {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept.append(x)  # else its memory may be another one's later
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes() // 4
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        stage.loss()
    return sum(sizes.values()) // job["stage"]["batch_size"]


def count(job: dict) -> dict:
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        stage = prepared(job)
        counter = FlopCounterMode(display=False)
        with counter:
            stage.loss().backward()
    modules, trained = {}, 0
    for name, parameter in stage.parameters:
        module = module_of(name)
        if is_read(module, job["stage"]):
            modules[module] = modules.get(module, 0) + parameter.numel()
            trained += parameter.numel() * parameter.requires_grad
    flops = counter.get_total_flops()
    print(f"{job['name']}: {sum(modules.values()):,} parameters, {flops:,} operations")
    counts = {"parameters": modules, "trained_parameters": trained, "flops_per_step": flops}
    if trained < 1_000_000:
        counts["kept_numbers"] = kept_numbers(job)
    return job | counts


def main() -> None:
    default = ROOT / "proto/tests/fixtures/counts.json"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = [count(job) for job in [*small_jobs(), *paper_jobs()]]
    out.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
