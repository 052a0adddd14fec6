"""Writes the parity fixtures: small random models, their outputs and gradients, in fp32.

    python worker/tests/reference/make_fixtures.py [worker/tests/fixtures]

Needs torch 2.11, transformers and safetensors. Each file holds `weight/*`, `input/*`, `output/*`
and `grad/*`: gradients of the weights (and of some inputs) of the loss, which is `output/loss` or,
for modules, the sum of every output times its `probe/*`. The `case` entry of the file's metadata
is JSON: the model's shapes and the settings. The decoder and the visual encoder come from
transformers; everything else from `mks2_reference.py`, and that is checked against transformers
here as well.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from mks2_reference import (
    IGNORE,
    MKS2,
    Config,
    Experts,
    RetrievalHead,
    TextTower,
    bootstrap_losses,
    clip_loss,
)
from safetensors.torch import save_file
from transformers import Blip2QFormerConfig, Blip2QFormerModel, CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaForCausalLM

VOCAB = 37
MODEL = {
    "decoder": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "max_text_tokens": 7,
    },
    "vision": {
        "image_size": 12,
        "patch_size": 4,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "layer_norm_eps": 1e-5,
        "projection_dim": 10,
    },
    "text_tower": {
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    },
    "memory": {"width": 14, "form": "plain"},
    "retrieval": {"dim": 8, "temperature": 0.2, "learn_temperature": True, "extra_blocks": []},
}


def shapes(**changes) -> dict:
    """`MODEL` with some values changed, one table at a time."""
    return {name: values | changes.get(name, {}) for name, values in MODEL.items()}


def randomize(module: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
    """Weights large enough that every part matters, norms around one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            if name.endswith(("log_inverse_temperature", "logit_scale")):
                p.fill_(1.3)
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1.0 + 0.2 * torch.randn_like(p))
            else:
                fan = p[0].numel() if p.ndim >= 2 else 4
                p.copy_(scale * torch.randn_like(p) / fan**0.5)


def build(model: dict, seed: int, memories=()) -> MKS2:
    mks2 = MKS2(Config.from_json(model, VOCAB))
    for name in memories:
        mks2.add_memory(name)
    randomize(mks2, seed)
    return mks2


def write(path: Path, case: dict, groups: dict) -> None:
    def stored(value: torch.Tensor) -> torch.Tensor:
        value = value.detach().clone().contiguous()
        return value.float() if value.dtype == torch.float64 else value

    tensors = {
        f"{group}/{name}": stored(value)
        for group, values in groups.items()
        for name, value in values.items()
    }
    save_file(tensors, path, metadata={"case": json.dumps({"vocab_size": VOCAB} | case)})


def gradients(loss: torch.Tensor, leaves: dict) -> dict:
    values = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, values) if grad is not None}


def probed(path: Path, case: dict, weights: dict, inputs: dict, outputs: dict, wanted=None) -> None:
    """A module's case: gradients of the probed outputs for weights and float inputs."""
    torch.manual_seed(77)
    probes = {n: torch.randn(v.shape).to(v.dtype) for n, v in outputs.items()}
    loss = sum((probes[name] * value).sum() for name, value in outputs.items())
    leaves = {n: w for n, w in weights.items() if wanted is None or n in wanted}
    leaves |= {f"input/{n}": x for n, x in inputs.items() if x.requires_grad}
    groups = {"weight": weights, "input": inputs, "probe": probes, "output": outputs}
    write(path, case, groups | {"grad": gradients(loss, leaves)})


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


# --- cases ----------------------------------------------------------------------------------


def decoder_block(out: Path) -> None:
    model = shapes(decoder={"num_hidden_layers": 1})
    mks2 = build(model, 1)
    h = leaf(2, 6, 16)
    last, _ = mks2.model(h)
    weights = {n: p for n, p in mks2.named_parameters() if n.startswith(("model.", "lm_head"))}
    probed(out / "decoder_block.safetensors", {"model": model}, weights, {"h": h}, {"last": last})


def llama(out: Path) -> None:
    """The full decoder, from transformers; the reference agrees."""
    model = shapes()
    d = dict(model["decoder"])
    d.pop("max_text_tokens")
    peer = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, attn_implementation="eager", **d))
    randomize(peer, 2)
    ids = torch.randint(VOCAB, (3, 7))
    logits = peer(ids).logits
    mks2 = build(model, 2)
    mks2.load_state_dict(peer.state_dict(), strict=False)
    close(mks2.lm_head(mks2.model(mks2.model.embed_tokens(ids))[0]), logits)
    path = out / "llama.safetensors"
    probed(path, {"model": model}, dict(peer.named_parameters()), {"ids": ids}, {"logits": logits})


def clip_vision(out: Path) -> None:
    """The visual encoder, from transformers; the reference agrees."""
    model = shapes()
    peer = CLIPVisionModelWithProjection(CLIPVisionConfig(**model["vision"]))
    randomize(peer, 3)
    pixels = torch.randn(2, 3, 12, 12).double()
    # In fp64: the last block's keys have gradients so small that rounding in fp32 would be seen.
    peer.double()
    seen = peer(pixels, output_hidden_states=True)
    patches, features = seen.hidden_states[-2][:, 1:], seen.image_embeds
    mks2 = build(model, 3).double()
    mks2.load_state_dict(peer.state_dict(), strict=False)
    ours = mks2.see(pixels)
    close(ours[0], patches)
    close(ours[1], features)
    outputs = {"patches": patches, "global": features}
    weights = dict(peer.named_parameters())
    probed(out / "clip_vision.safetensors", {"model": model}, weights, {"pixels": pixels}, outputs)


def text_tower(out: Path) -> None:
    tower = TextTower(Config.from_json(MODEL, VOCAB))
    randomize(tower, 4)
    inputs = {"ids": torch.randint(VOCAB, (3, 7)), "end": torch.tensor([6, 3, 1])}
    outputs = {"features": tower(**inputs)}
    weights = dict(tower.named_parameters())
    path = out / "text_tower.safetensors"
    probed(path, {"model": MODEL}, weights, inputs, outputs)


def clip(out: Path) -> None:
    torch.manual_seed(5)
    inputs = {"text": leaf(6, 10), "images": leaf(6, 10), "logit_scale": torch.tensor(1.3)}
    inputs["logit_scale"].requires_grad_(True)
    loss = clip_loss(inputs["text"], inputs["images"], inputs["logit_scale"])
    groups = {"input": inputs, "output": {"loss": loss}, "grad": gradients(loss, inputs)}
    write(out / "clip_loss.safetensors", {}, groups)


def bridge(out: Path) -> None:
    mks2 = build(MODEL, 6)
    mks2.prepare_memory_stage("see")
    randomize(mks2.bridge, 6)
    patches = leaf(2, 9, 12)
    weights = {f"bridge.{n}": p for n, p in mks2.bridge.named_parameters()}
    outputs = {"soft": mks2.bridge(patches)}
    path = out / "bridge.safetensors"
    probed(path, {"model": MODEL}, weights, {"patches": patches}, outputs)


# Width, heads, blocks, and in which of them queries look at the picture.
Q_FORMERS = [(9, 3, 2, 1), (10, 5, 2, 2), (8, 2, 4, 3)]


def q_former(out: Path, width: int, heads: int, blocks: int, every: int) -> None:
    """The Q-Former of transformers and a linear layer behind it; all gradients of one of them."""
    shape = {
        "hidden_size": width,
        "intermediate_size": 14,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "cross_attention_frequency": every,
        "layer_norm_eps": 1e-12,
    }
    vision = MODEL["vision"]["hidden_size"]
    config = Blip2QFormerConfig(**shape, encoder_hidden_size=vision, attn_implementation="eager")
    model = Blip2QFormerModel(config).eval()
    linear = torch.nn.Linear(width, MODEL["decoder"]["hidden_size"])
    randomize(model, 40 + every)
    randomize(linear, 50 + every)
    queries, patches = leaf(1, 5, width), leaf(2, 9, vision)
    found = model(query_embeds=queries.expand(2, -1, -1), encoder_hidden_states=patches).last_hidden_state
    weights = {"query_tokens": queries}
    weights |= {f"qformer.{name}": value for name, value in model.named_parameters()}
    weights |= {f"bridge.{name}": value for name, value in linear.named_parameters()}
    bridge = shape | {"kind": "q-former", "num_query_tokens": 5}
    wanted = None if every == 2 else set()
    path = out / f"q_former_{every}.safetensors"
    probed(path, {"model": MODEL | {"bridge": bridge}}, weights, {"patches": patches}, {"soft": linear(found)}, wanted)


def memory(out: Path, form: str) -> None:
    """Memories in the place of the MLPs, in every block."""
    model = shapes(memory={"form": form}, decoder={"num_hidden_layers": 2})
    mks2 = build(model, 7, ["see"])
    mks2.stage = "see"
    h = leaf(2, 5, 16)
    last, after = mks2.model(h, mks2.storing)
    used = {n: p for n, p in mks2.named_parameters() if n.startswith(("model.", "lm_head", "memory"))}
    outputs = {"last": last, "after_1": after[0]}
    path = out / f"memory_{form}.safetensors"
    probed(path, {"model": model}, used, {"h": h}, outputs)


def retrieval(out: Path, name: str, **settings) -> None:
    torch.manual_seed(8)
    model = shapes(retrieval=settings)
    head = RetrievalHead(Config.from_json(model, VOCAB))
    randomize(head, 8)
    inputs = {"text": leaf(5, 16), "images": leaf(5, 10)}
    loss = head(**inputs)
    weights = {f"retrieval.{n}": p for n, p in head.named_parameters()}
    leaves = weights | {f"input/{n}": x for n, x in inputs.items() if n == "text"}
    groups = {"weight": weights, "input": inputs, "output": {"loss": loss}}
    path = out / f"{name}.safetensors"
    write(path, {"model": model}, groups | {"grad": gradients(loss, leaves)})


def mixture(out: Path, name: str, memories: list, form: str = "plain", **settings) -> None:
    """Adapters and the soft mixture in every block; without memories, LoRA alone."""
    model = shapes(memory={"form": form}, decoder={"num_hidden_layers": 2})
    mks2 = build(model, 9, memories)
    chosen = Experts(memories, lora_rank=3, lora_alpha=6.0, **settings)
    mks2.prepare_experts_stage(chosen)
    randomize(mks2.experts, 10, scale=0.5)
    trained = mks2.trained()
    h = leaf(2, 5, 16)
    last, _ = mks2.model(h, mks2.collaborating)
    used = {n: p for n, p in mks2.named_parameters() if not n.startswith("vis")}
    case = {"model": model, "experts": vars(chosen)}
    path = out / f"{name}.safetensors"
    probed(path, case, used, {"h": h}, {"last": last}, wanted=trained)


def stage(path: Path, case: dict, weights: dict, batch: SimpleNamespace, losses: dict) -> None:
    loss = sum(losses.values())
    trained = {name: p for name, p in weights.items() if p.requires_grad}
    groups = {
        "weight": weights,
        "input": vars(batch),
        "output": losses | {"loss": loss},
        "grad": gradients(loss, trained),
    }
    write(path, case, groups)


def bootstrap_stage(out: Path) -> None:
    """Language model and CLIP with a second view of each picture, one block each but for the
    encoder; both sides of the CLIP are trained."""
    one = {"num_hidden_layers": 1}
    model = shapes(decoder=one, text_tower=one, vision={"num_hidden_layers": 2})
    settings = {"view_weight": 0.7, "view_temperature": 0.3}
    mks2 = build(model, 15)
    tower = TextTower(Config.from_json(model, VOCAB))
    randomize(tower, 16)
    ids = torch.randint(VOCAB, (4, 7))
    labels = torch.full_like(ids, IGNORE)
    for row, length in enumerate([7, 4, 5, 2]):
        labels[row, : length - 1] = ids[row, 1:length]
    batch = SimpleNamespace(
        ids=ids,
        labels=labels,
        names=torch.randint(VOCAB, (4, 7)),
        ends=torch.tensor([6, 2, 4, 3]),
        pixels=torch.randn(4, 3, 12, 12),
        second=torch.randn(4, 3, 12, 12),
    )
    weight, temperature = settings["view_weight"], settings["view_temperature"]
    losses = bootstrap_losses(mks2, tower, batch, weight, temperature)
    losses = dict(zip(["language", "contrastive", "views"], losses))
    weights = dict(mks2.named_parameters()) | dict(tower.named_parameters())
    case = {"model": model, "bootstrap": settings}
    stage(out / "stage_bootstrap.safetensors", case, weights, batch, losses)


def memory_stage(out: Path, form: str, extra: list) -> None:
    model = shapes(memory={"form": form}, retrieval={"extra_blocks": extra})
    mks2 = build(model, 11)
    mks2.prepare_memory_stage("see")
    randomize(mks2, 12)
    captions = torch.randint(VOCAB, (4, 7))
    labels = captions.clone()
    for row, length in enumerate([7, 4, 5, 2]):
        labels[row, length:] = IGNORE
    batch = SimpleNamespace(
        pixels=torch.randn(4, 3, 12, 12),
        caption_ids=captions,
        caption_labels=labels,
        retrieval_ids=torch.randint(VOCAB, (4, 7)),
        retrieval_end=torch.tensor([6, 2, 4, 3]),
    )
    caption, text_to_image = mks2.memory_loss(batch)
    losses = {"caption": caption, "retrieval": text_to_image}
    path = out / f"stage_memory_{form}.safetensors"
    stage(path, {"model": model}, dict(mks2.named_parameters()), batch, losses)


def experts_stage(out: Path) -> None:
    model = shapes()
    mks2 = build(model, 13, ["see", "hear"])
    settings = Experts(
        ["see", "hear"], 3, 6.0, adapter_blocks=[2, 3], router_blocks=[1, 3], router_bias=0.5
    )
    mks2.prepare_experts_stage(settings)
    randomize(mks2.experts, 14, scale=0.5)
    labels = torch.full((3, 7), IGNORE)
    labels[0, 3:5], labels[1, 2], labels[2, 4:6] = torch.tensor([5, 9]), 11, torch.tensor([2, 30])
    batch = SimpleNamespace(ids=torch.randint(VOCAB, (3, 7)), labels=labels)
    case = {"model": model, "experts": vars(settings)}
    path = out / "stage_experts.safetensors"
    losses = {"answer": mks2.experts_loss(batch)}
    stage(path, case, dict(mks2.named_parameters()), batch, losses)


def main() -> None:
    here = Path(__file__).resolve().parent
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "fixtures"
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    decoder_block(out)
    llama(out)
    clip_vision(out)
    text_tower(out)
    clip(out)
    bridge(out)
    for shape in Q_FORMERS:
        q_former(out, *shape)
    memory(out, "plain")
    memory(out, "gated")
    retrieval(out, "retrieval")
    retrieval(out, "retrieval_unprojected", project_images=False, dim=10)
    mixture(out, "lora", [], adapt_attention=True)
    mixture(out, "mixture_2", ["see"])
    mixture(out, "mixture_3", ["see", "hear"], form="gated", adapt_attention=True)
    bootstrap_stage(out)
    memory_stage(out, "plain", [])
    memory_stage(out, "gated", [1, 2])
    experts_stage(out)
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    print(f"{len(list(out.glob('*.safetensors')))} fixtures, {size / 1024:.0f} KiB, in {out}")


if __name__ == "__main__":
    main()
