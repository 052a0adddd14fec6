"""MKS2 in plain eager PyTorch, written from the paper (arXiv 2311.15759).

An independent peer of the Rust implementation: the parity fixtures come from it, and the
benchmarks run against it. Parameter names are those of the Rust side, which follow Hugging Face's
LlamaForCausalLM and CLIPVisionModelWithProjection. Shapes in comments: b rows, t tokens,
d hidden size, p patches, v width of the visual encoder, e global feature, s retrieval space.

    config = Config.from_json(json.load(open("config.json")))
    model = MKS2(config)
    optimizer = model.prepare_memory_stage("see")        # or prepare_experts_stage(...)
    loss = memory_step(model, optimizer, batch)          # or experts_step(...)
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100


@dataclass
class Experts:
    """Settings of stage 2; blocks are counted from 1, an empty list means all."""

    memories: list = field(default_factory=list)
    lora_rank: int = 16
    lora_alpha: float = 16.0
    adapt_attention: bool = False
    adapter_blocks: list = field(default_factory=list)
    router_blocks: list = field(default_factory=list)
    router_bias: float = 0.0


@dataclass
class Config:
    """The `[model]` table of a job file, and the size of the vocabulary."""

    decoder: SimpleNamespace
    vision: SimpleNamespace
    text_tower: SimpleNamespace
    memory: SimpleNamespace
    retrieval: SimpleNamespace
    vocab_size: int

    @staticmethod
    def from_json(model: dict, vocab_size: int) -> "Config":
        defaults = {
            "decoder": {"rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
            "vision": {"layer_norm_eps": 1e-5},
            "text_tower": {"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
            "memory": {"form": "plain"},
            "retrieval": {
                "dim": 128,
                "temperature": 0.07,
                "learn_temperature": True,
                "project_images": True,
                "extra_blocks": [],
            },
        }
        parts = {
            name: SimpleNamespace(**(values | model.get(name, {})))
            for name, values in defaults.items()
        }
        if "text_tower" in model:
            tower = parts["text_tower"]
            tower.num_key_value_heads = tower.num_attention_heads
        return Config(vocab_size=vocab_size, **parts)


# --- language model -------------------------------------------------------------------------


def rotary_tables(length: int, head: int, theta: float) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / theta ** (torch.arange(0, head, 2).float() / head)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Lora(nn.Module):
    """B A x * alpha / rank (Hu et al. 2021)."""

    def __init__(self, out: int, inputs: int, rank: int, alpha: float):
        super().__init__()
        self.lora_a = nn.Parameter(torch.randn(rank, inputs) / (3 * inputs) ** 0.5)
        self.lora_b = nn.Parameter(torch.zeros(out, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale


def project(linear: nn.Linear, x: Tensor, adapters, name: str) -> Tensor:
    y = linear(x)
    return y if adapters is None else y + adapters[name](x)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c.hidden_size
        self.head = d // c.num_attention_heads
        self.grouped = c.num_key_value_heads != c.num_attention_heads
        key_value = self.head * c.num_key_value_heads
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, key_value, bias=False)
        self.v_proj = nn.Linear(d, key_value, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, tables, adapters=None) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            project(layer, x, adapters, name).view(b, t, -1, self.head).transpose(1, 2)
            for layer, name in (
                (self.q_proj, "q_proj"),
                (self.k_proj, "k_proj"),
                (self.v_proj, "v_proj"),
            )
        )
        q, k = rotate(q, *tables), rotate(k, *tables)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        y = y.transpose(1, 2).reshape(b, t, -1)
        return project(self.o_proj, y, adapters, "o_proj")


class FeedForward(nn.Module):
    """down(silu(gate x) * up x), or down(gelu(up x)) without a gate."""

    def __init__(self, d: int, width: int, gated: bool):
        super().__init__()
        self.gate_proj = nn.Linear(d, width, bias=False) if gated else None
        self.up_proj = nn.Linear(d, width, bias=False)
        self.down_proj = nn.Linear(width, d, bias=False)

    def forward(self, x: Tensor, adapters=None) -> Tensor:
        up = project(self.up_proj, x, adapters, "up_proj")
        if self.gate_proj is None:
            inner = F.gelu(up)
        else:
            inner = F.silu(project(self.gate_proj, x, adapters, "gate_proj")) * up
        return project(self.down_proj, inner, adapters, "down_proj")


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = FeedForward(c.hidden_size, c.intermediate_size, gated=True)

    def forward(self, h: Tensor, tables, second_half, attention_adapters=None) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), tables, attention_adapters)
        return h + second_half(self.mlp, self.post_attention_layernorm(h))


class Stack(nn.Module):
    """Embedding, blocks and final norm, with the second halves chosen by the caller."""

    def __init__(self, c, vocab_size: int):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)

    def forward(self, h: Tensor, halves=None) -> tuple[Tensor, list[Tensor]]:
        """Normed last states, and the states after every block."""
        c = self.config
        tables = rotary_tables(h.shape[1], c.hidden_size // c.num_attention_heads, c.rope_theta)
        after = []
        for number, block in enumerate(self.layers):
            if halves is None:
                h = block(h, tables, lambda mlp, x: mlp(x))
            else:
                h = block(h, tables, *halves(number))
            after.append(h)
        return self.norm(h), after


# --- visual encoder (CLIP) ------------------------------------------------------------------


class VisionAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        v = c.hidden_size
        self.heads = c.num_attention_heads
        self.q_proj, self.k_proj = nn.Linear(v, v), nn.Linear(v, v)
        self.v_proj, self.out_proj = nn.Linear(v, v), nn.Linear(v, v)

    def forward(self, x: Tensor) -> Tensor:
        b, p, v = x.shape
        q, k, value = (
            layer(x).view(b, p, self.heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, value)
        return self.out_proj(y.transpose(1, 2).reshape(b, p, v))


class VisionMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.self_attn = VisionAttention(c)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = VisionMlp(c)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.self_attn(self.layer_norm1(h))
        return h + self.mlp(self.layer_norm2(h))


class VisionEmbeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        positions = (c.image_size // c.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(c.hidden_size) * c.hidden_size**-0.5)
        self.patch_embedding = nn.Conv2d(
            3, c.hidden_size, kernel_size=c.patch_size, stride=c.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(positions, c.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings = VisionEmbeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionBlock(c) for _ in range(c.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patches after the last block but one, and the normed class position."""
        h = self.pre_layrnorm(self.embeddings(pixels))
        for block in self.encoder.layers:
            patches, h = h[:, 1:], block(h)
        return patches, self.post_layernorm(h[:, 0])


# --- what MKS2 adds -------------------------------------------------------------------------


class Memory(nn.Module):
    """The modular visual memory: one network per block."""

    def __init__(self, c: Config):
        super().__init__()
        d, gated = c.decoder.hidden_size, c.memory.form == "gated"
        self.layers = nn.ModuleList(
            FeedForward(d, c.memory.width, gated) for _ in range(c.decoder.num_hidden_layers)
        )


class RetrievalHead(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        r = c.retrieval
        self.text_projection = nn.Linear(c.decoder.hidden_size, r.dim, bias=False)
        projection = nn.Linear(c.vision.projection_dim, r.dim, bias=False)
        self.image_projection = projection if r.project_images else nn.Identity()
        start = torch.tensor(1.0 / r.temperature).log()
        if r.learn_temperature:
            self.log_inverse_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_inverse_temperature", start, persistent=False)

    def forward(self, text: Tensor, images: Tensor, first: int = 0) -> Tensor:
        """InfoNCE of texts [b, d] against all images [m, e], averaged over the texts; text i
        belongs to image first + i."""
        text = F.normalize(self.text_projection(text), dim=-1)
        images = F.normalize(self.image_projection(images), dim=-1)
        scale = self.log_inverse_temperature.clamp(max=torch.tensor(100.0).log()).exp()
        return F.cross_entropy(scale * text @ images.T, first + torch.arange(len(text)))


class Retrieval(RetrievalHead):
    """The last block's head, with a head for each extra block (counted from 1) inside."""

    def __init__(self, c: Config):
        super().__init__(c)
        extra = [n for n in c.retrieval.extra_blocks if n != c.decoder.num_hidden_layers]
        if extra:
            self.blocks = nn.ModuleDict({str(n): RetrievalHead(c) for n in extra})
        self.extra = extra

    def loss(self, last: Tensor, after: list, end: Tensor, images: Tensor, first: int) -> Tensor:
        rows = torch.arange(len(end))
        losses = [self(last[rows, end], images, first)]
        for n in self.extra:
            losses.append(self.blocks[str(n)](after[n - 1][rows, end], images, first))
        return torch.stack(losses).mean()


class Mixture(nn.Module):
    """Adapters and router of one block; the experts themselves belong to others."""

    def __init__(self, c: Config, settings: Experts, number: int):
        super().__init__()
        self.names = ["mlp", *settings.memories]
        count, d = len(self.names), c.decoder.hidden_size
        chosen = lambda blocks: not blocks or number + 1 in blocks  # noqa: E731
        start = torch.tensor([0.0] + [settings.router_bias] * (count - 1))
        self.router = None
        if count > 1 and chosen(settings.router_blocks):
            self.router = nn.Linear(d, count)
            nn.init.zeros_(self.router.weight)
            self.router.bias.data.copy_(start)
        self.register_buffer("constant", start.softmax(0), persistent=False)

        def adapters(shapes):
            rank, alpha = settings.lora_rank, settings.lora_alpha
            return nn.ModuleDict({k: Lora(o, i, rank, alpha) for k, (o, i) in shapes.items()})

        if chosen(settings.adapter_blocks):
            w, m = c.decoder.intermediate_size, c.memory.width
            gated = lambda w: {"gate_proj": (w, d), "up_proj": (w, d), "down_proj": (d, w)}  # noqa: E731
            memory = gated(m)
            if c.memory.form == "plain":
                del memory["gate_proj"]
            self.mlp = adapters(gated(w))
            for name in settings.memories:
                self.add_module(name, adapters(memory))
            if settings.adapt_attention:
                kv = d // c.decoder.num_attention_heads * c.decoder.num_key_value_heads
                shapes = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, d)}
                self.self_attn = adapters(shapes)

    def forward(self, x: Tensor, experts: list[FeedForward]) -> Tensor:
        if self.router is None:
            scores = self.constant.expand(*x.shape[:-1], -1)
        else:
            scores = self.router(x).softmax(dim=-1)
        out = 0
        for i, (name, expert) in enumerate(zip(self.names, experts)):
            out = out + scores[..., i : i + 1] * expert(x, getattr(self, name, None))
        return out


class MKS2(nn.Module):
    """All parts. Stages decide which exist beside the decoder and the visual encoder."""

    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.model = Stack(c.decoder, c.vocab_size)
        self.lm_head = nn.Linear(c.decoder.hidden_size, c.vocab_size, bias=False)
        if c.decoder.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.vision_model = VisionModel(c.vision)
        self.visual_projection = nn.Linear(c.vision.hidden_size, c.vision.projection_dim, bias=False)
        self.memory = nn.ModuleDict()

    def add_memory(self, stage: str) -> None:
        self.memory[stage] = Memory(self.config)

    def add_bridge(self) -> None:
        self.bridge = nn.Linear(self.config.vision.hidden_size, self.config.decoder.hidden_size)

    def begin_memory_stage(self, stage: str) -> None:
        """Stage 1: trains memory, bridge and retrieval head."""
        self.requires_grad_(False)
        self.add_memory(stage)
        self.stage = stage
        self.add_bridge()
        self.retrieval = Retrieval(self.config)

    def begin_experts_stage(self, settings: Experts) -> None:
        """Stage 2: trains adapters and routers."""
        self.requires_grad_(False)
        self.settings = settings
        self.experts = nn.Module()
        layers = self.config.decoder.num_hidden_layers
        self.experts.layers = nn.ModuleList(
            Mixture(self.config, settings, number) for number in range(layers)
        )

    def prepare_memory_stage(self, stage: str, **optimizer) -> torch.optim.Optimizer:
        self.begin_memory_stage(stage)
        return self.adamw(**optimizer)

    def prepare_experts_stage(self, settings: Experts, **optimizer) -> torch.optim.Optimizer:
        self.begin_experts_stage(settings)
        return self.adamw(**optimizer)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def adamw(self, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8):
        trained = list(self.trained().values())
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features [b, p, v] and global features [b, e]."""
        patches, pooled = self.vision_model(pixels)
        return patches, self.visual_projection(pooled)

    def storing(self, number: int):
        """Second half of stage 1: the memory in the place of the MLP."""
        memory = self.memory[self.stage].layers[number]
        return (lambda _mlp, x: memory(x),)

    def collaborating(self, number: int):
        """Second half of stage 2: the soft mixture of MLP and memories."""
        mixture = self.experts.layers[number]
        memories = [self.memory[name].layers[number] for name in self.settings.memories]
        attention = getattr(mixture, "self_attn", None)
        return (lambda mlp, x: mixture(x, [mlp, *memories])), attention

    def next_token_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy at the labelled positions; logits are computed there alone."""
        labelled = labels != IGNORE
        return F.cross_entropy(self.lm_head(states[labelled]), labels[labelled])

    def memory_loss(self, batch, seen=None, first: int = 0) -> tuple[Tensor, Tensor]:
        """L_c and L_t2i. Caption token j is predicted at the position before it; the first one
        at the last soft token. `retrieval_end` is the position of the end token. A microbatch
        gives its patches and all images as `seen`, and the place of its first row."""
        with torch.no_grad():
            patches, images = seen or self.see(batch.pixels)
        soft = self.bridge(patches)
        words = self.model.embed_tokens(batch.caption_ids[:, :-1])
        last, _ = self.model(torch.cat([soft, words], dim=1), self.storing)
        caption = self.next_token_loss(last[:, soft.shape[1] - 1 :], batch.caption_labels)
        last, after = self.model(self.model.embed_tokens(batch.retrieval_ids), self.storing)
        return caption, self.retrieval.loss(last, after, batch.retrieval_end, images, first)

    def experts_loss(self, batch) -> Tensor:
        """Cross-entropy on the answer's tokens: position i predicts labels[i]."""
        last, _ = self.model(self.model.embed_tokens(batch.ids), self.collaborating)
        return self.next_token_loss(last, batch.labels)

    def dialogues_loss(self, rows: list) -> Tensor:
        """The same of rows with and without a picture, one row at a time, so that nothing is padded
        and no soft token has to be masked. A row is (pixels [3, y, x] or None, ids, labels)."""
        total, count = 0, 0
        for pixels, ids, labels in rows:
            h = self.model.embed_tokens(ids)[None]
            if pixels is not None:
                with torch.no_grad():
                    soft = self.bridge(self.see(pixels[None])[0])
                h = torch.cat([soft, h], dim=1)
            last, _ = self.model(h, self.collaborating)
            said = last[0, -len(ids) :]
            labelled = labels != IGNORE
            logits = self.lm_head(said[labelled])
            total = total + F.cross_entropy(logits, labels[labelled], reduction="sum")
            count += int(labelled.sum())
        return total / count


class TextTower(nn.Module):
    """The text side of the bootstrap CLIP: decoder blocks read at the end token."""

    def __init__(self, c: Config):
        super().__init__()
        self.text_tower = Stack(c.text_tower, c.vocab_size)
        self.text_projection = nn.Linear(
            c.text_tower.hidden_size, c.vision.projection_dim, bias=False
        )
        self.logit_scale = nn.Parameter(torch.tensor(1.0 / 0.07).log())

    def forward(self, ids: Tensor, end: Tensor) -> Tensor:
        last, _ = self.text_tower(self.text_tower.embed_tokens(ids))
        return self.text_projection(last[torch.arange(len(ids)), end])


def clip_loss(text: Tensor, images: Tensor, logit_scale: Tensor) -> Tensor:
    scale = logit_scale.clamp(max=torch.tensor(100.0).log()).exp()
    logits = scale * F.normalize(text, dim=-1) @ F.normalize(images, dim=-1).T
    target = torch.arange(len(text))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def view_loss(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Each picture's first view against the second views of all, and the other way round: the
    contrastive loss of Chen et al. 2020 with the other view's batch as negatives."""
    similarity = F.cosine_similarity(one[:, None], other[None, :], dim=-1) / temperature
    from_one = similarity.diagonal() - similarity.logsumexp(dim=1)
    from_other = similarity.diagonal() - similarity.logsumexp(dim=0)
    return -(from_one.mean() + from_other.mean()) / 2


def bootstrap_losses(model: MKS2, tower: TextTower, batch, weight: float, temperature: float):
    """The stage before both of the paper: language model, CLIP of names and first views, and
    `weight` times the loss between the two views. Position i predicts labels[i]."""
    last, _ = model.model(model.model.embed_tokens(batch.ids))
    language = model.next_token_loss(last, batch.labels)
    first, second = model.see(batch.pixels)[1], model.see(batch.second)[1]
    names = tower(batch.names, batch.ends)
    contrastive = clip_loss(names, first, tower.logit_scale)
    return language, contrastive, weight * view_loss(first, second, temperature)


# --- training -------------------------------------------------------------------------------


def schedule(optimizer, steps: int, warmup: int, min_lr_ratio: float):
    """PyTorch's own warm-up and cosine: the peak at the last step of the warm-up, `min_lr_ratio`
    times the peak at the last step of all. Needs a warm-up of two steps or more."""
    peak = optimizer.param_groups[0]["lr"]
    schedules = torch.optim.lr_scheduler
    rise = schedules.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
    fall = schedules.CosineAnnealingLR(optimizer, steps - warmup, eta_min=peak * min_lr_ratio)
    return schedules.SequentialLR(optimizer, [rise, fall], milestones=[warmup - 1])


def _update(model: MKS2, optimizer, loss: Tensor, clip_norm: float) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.trained().values(), clip_norm)
    optimizer.step()
    return loss.item()


def memory_step(model: MKS2, optimizer, batch, clip_norm: float = 1.0) -> float:
    """One step of stage 1."""
    caption, retrieval = model.memory_loss(batch)
    return _update(model, optimizer, caption + retrieval, clip_norm)


def experts_step(model: MKS2, optimizer, batch, clip_norm: float = 1.0) -> float:
    """One step of stage 2."""
    return _update(model, optimizer, model.experts_loss(batch), clip_norm)
