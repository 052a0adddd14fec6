"""MKS2 for transformers: language models that store what pictures show (arXiv 2311.15759).

    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer("a text", return_tensors="pt")
    model.generate(**inputs)

    asked = [{"role": "user", "content": "a question, as an experts stage was trained to answer it"}]
    model.generate(**tokenizer.apply_chat_template(asked, return_tensors="pt"))

    pictures = CLIPImageProcessor.from_pretrained(folder)(image, return_tensors="pt")   # if it sees
    model.generate(**inputs, **pictures)                                                # new tokens alone

A Llama-like decoder whose second halves of blocks are not its MLPs alone:

    h_s = h + Attention(RMSNorm(h))
    X   = RMSNorm'(h_s)
    h   = h_s + second half(X)
          "memory"    MVM(X)                                  stage 1: the memory in the place of the MLP
          "experts"   sum_e S_e Expert_e(X)                   stage 2: the MLP and the memories, as a soft
                      S = softmax(W_s X + b_s)                mixture in which every token uses all of them

Each matrix of an expert may have a low-rank adapter: W x + alpha / r B A x. A picture becomes soft tokens, which
stand before the text: Bridge(patch features of the visual encoder after its last block but one), one for each patch,
or for each query of BLIP-2's Q-Former where there is one.

Sizes in comments: b rows, t tokens, p patches, d hidden size, v width of the visual encoder, x experts.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


class Mks2Config(PreTrainedConfig):
    """The decoder in the words of `LlamaConfig`, and what MKS2 adds. Blocks are counted from 1; an empty list
    means all of them.

    qkv_bias        queries, keys and values have biases, as in Qwen2
    sliding_window  positions that a query sees, as in Mistral; None: all before it
    second_half     "memory" or "experts"
    memories        `width` and `form` of each: "plain", down(gelu(up x)), or "gated", down(silu(gate x) * up x)
    lora            None, or `rank`, `alpha`, `blocks`, and whether the attention has adapters: `attention`
    router_blocks   blocks with a router; in the others the scores are softmax(0, router_bias, router_bias, ...)
    vision_config   None where the model sees no pictures
    qformer_config  None where each patch becomes a soft token; num_query_tokens: those of the Q-Former
    question        how a question was put into words in training, answer an answer; answer_after_end: the question is
                    closed by the end token
    """

    model_type = "mks2"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    rope_parameters: dict | None = None
    qkv_bias: bool = False
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    second_half: str = "experts"
    memories: list | None = None
    lora: dict | None = None
    router_blocks: list | None = None
    router_bias: float = 0.0
    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    question: str | None = None
    answer: str | None = None
    answer_after_end: bool = False

    def __post_init__(self, **kwargs):
        self.memories = self.memories or []
        self.router_blocks = self.router_blocks or []
        if isinstance(self.vision_config, dict):
            self.vision_config = CLIPVisionConfig(**self.vision_config)
        if isinstance(self.qformer_config, dict):
            self.qformer_config = Blip2QFormerConfig(**self.qformer_config)
        super().__post_init__(**kwargs)


def is_chosen(number, blocks):
    """Whether block `number`, from 0, is among `blocks`, from 1."""
    return not blocks or number + 1 in blocks


class Lora(nn.Module):
    """alpha / r B A x (Hu et al. 2021)."""

    def __init__(self, out, inputs, lora):
        super().__init__()
        self.lora_a = nn.Parameter(torch.empty(lora["rank"], inputs))
        self.lora_b = nn.Parameter(torch.empty(out, lora["rank"]))
        self.scale = lora["alpha"] / lora["rank"]

    def forward(self, x):
        return F.linear(F.linear(x, self.lora_a) * self.scale, self.lora_b)


def adapters_of(module, lora):
    """An adapter for each linear layer of a module."""
    layers = module.named_children()
    return nn.ModuleDict({name: Lora(layer.out_features, layer.in_features, lora) for name, layer in layers})


def adapted(module, name, x, adapters):
    """A linear layer of a module, with its adapter where there are any."""
    y = getattr(module, name)(x)
    return y if adapters is None else y + adapters[name](x)


class FeedForward(nn.Module):
    """The two-layer network of a block: the decoder's MLP, or a memory."""

    def __init__(self, d, width, form):
        super().__init__()
        self.is_gated = form == "gated"
        if self.is_gated:
            self.gate_proj = nn.Linear(d, width, bias=False)
        self.up_proj = nn.Linear(d, width, bias=False)
        self.down_proj = nn.Linear(width, d, bias=False)

    def forward(self, x, adapters=None):
        up = adapted(self, "up_proj", x, adapters)
        inner = F.silu(adapted(self, "gate_proj", x, adapters)) * up if self.is_gated else F.gelu(up)
        return adapted(self, "down_proj", inner, adapters)


class Attention(nn.Module):
    """Grouped queries with rotary positions."""

    is_causal = True

    def __init__(self, config, number):
        super().__init__()
        self.config, self.number = config, number
        d, head = config.hidden_size, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(d, config.num_attention_heads * head, bias=config.qkv_bias)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * head, bias=config.qkv_bias)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * head, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * head, d, bias=False)

    def forward(self, x, turns, mask, past_key_values, adapters, **kwargs):
        rows = x.shape[:-1]
        q, k, v = (
            adapted(self, name, x, adapters).view(*rows, -1, self.config.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = apply_rotary_pos_emb(q, k, *turns)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.number)
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        window = self.config.sliding_window
        scaling = self.config.head_dim**-0.5
        y, _ = attend(self, q, k, v, mask, scaling=scaling, dropout=0.0, sliding_window=window, **kwargs)
        return adapted(self, "o_proj", y.reshape(*rows, -1), adapters)


class Block(nn.Module):
    """A block, with its second half left open."""

    def __init__(self, config, number):
        super().__init__()
        d = config.hidden_size
        self.input_layernorm = LlamaRMSNorm(d, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, number)
        self.post_attention_layernorm = LlamaRMSNorm(d, eps=config.rms_norm_eps)
        self.mlp = FeedForward(d, config.intermediate_size, "gated")

    def forward(self, h, second_half, **kwargs):
        h = h + self.self_attn(self.input_layernorm(h), **kwargs)
        return h + second_half(self.post_attention_layernorm(h))


class Decoder(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, number) for number in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)


class Memory(nn.Module):
    """A modular visual memory (MVM): one network for each block."""

    def __init__(self, config, width, form):
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(FeedForward(config.hidden_size, width, form) for _ in layers)


class Mixture(nn.Module):
    """Router and adapters of one block; the experts themselves belong to others. Memories are known by their
    numbers: adapters of the first one are called `0`."""

    def __init__(self, config, number, block, memories):
        super().__init__()
        self.router, self.bias = None, config.router_bias
        if memories and is_chosen(number, config.router_blocks):
            self.router = nn.Linear(config.hidden_size, 1 + len(memories))
        self.names = ["mlp", *(str(place) for place in range(len(memories)))]
        if config.lora is not None and is_chosen(number, config.lora["blocks"]):
            for name, expert in zip(self.names, [block.mlp, *memories]):
                self.add_module(name, adapters_of(expert, config.lora))
            if config.lora["attention"]:
                self.self_attn = adapters_of(block.self_attn, config.lora)

    def scores(self, x):
        """Shares of the experts in each token, [b, t, x]."""
        if self.router is not None:
            return self.router(x).softmax(dim=-1)
        start = torch.tensor([0.0] + [self.bias] * (len(self.names) - 1)).softmax(dim=-1)
        return start.to(x).expand(*x.shape[:-1], -1)

    def forward(self, x, experts):
        outputs = [expert(x, getattr(self, name, None)) for name, expert in zip(self.names, experts)]
        return sum(share * output for share, output in zip(self.scores(x).split(1, dim=-1), outputs))


class Experts(nn.Module):
    """The mixtures of all blocks."""

    def __init__(self, config, blocks, memory):
        super().__init__()
        self.layers = nn.ModuleList(
            Mixture(config, number, block, [one.layers[number] for one in memory])
            for number, block in enumerate(blocks)
        )


class Mks2PreTrainedModel(PreTrainedModel):
    config_class = Mks2Config
    base_model_prefix = "model"
    _no_split_modules = ["Block", "Mixture"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """As training starts: adapters change nothing, and routers know no token."""
        super()._init_weights(module)
        if isinstance(module, Lora):
            init.normal_(module.lora_a, std=(3 * module.lora_a.shape[1]) ** -0.5)
            init.zeros_(module.lora_b)
        elif isinstance(module, Mks2ForCausalLM) and self.config.qformer_config is not None:
            init.normal_(module.query_tokens, std=self.config.initializer_range)
        elif isinstance(module, Mixture) and module.router is not None:
            init.zeros_(module.router.weight)
            init.constant_(module.router.bias, module.bias)
            init.zeros_(module.router.bias[:1])


class Mks2ForCausalLM(Mks2PreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.memory = nn.ModuleList(Memory(config, one["width"], one["form"]) for one in config.memories)
        if config.second_half == "experts":
            self.experts = Experts(config, self.model.layers, self.memory)
        if (vision := config.vision_config) is not None:
            self.vision_model = CLIPVisionModel._from_config(vision)
            self.visual_projection = nn.Linear(vision.hidden_size, vision.projection_dim, bias=False)
            width = vision.hidden_size
            if (asked := config.qformer_config) is not None:
                width = asked.hidden_size
                self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, width))
                self.qformer = Blip2QFormerModel._from_config(asked)
            self.bridge = nn.Linear(width, config.hidden_size)
        self.post_init()

    def get_image_features(self, pixel_values):
        """Global features of pictures, in the space of CLIP."""
        return self.visual_projection(self.vision_model(pixel_values.to(self.dtype)).pooler_output)

    def look(self, pixel_values):
        """Soft tokens of pictures, [b, p, d]."""
        if self.config.vision_config is None:
            raise ValueError("this model sees no pictures: nothing connects a visual encoder to it")
        seen = self.vision_model(pixel_values.to(self.dtype), output_hidden_states=True)
        features = seen.hidden_states[-2][:, 1:]
        if self.config.qformer_config is not None:
            queries = self.query_tokens.expand(len(features), -1, -1)
            features = self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return self.bridge(features)

    def embed(self, input_ids, attention_mask, pixel_values):
        """Input embeddings and their mask: pictures stand before the text."""
        embeds = self.model.embed_tokens(input_ids)
        if pixel_values is None:
            return embeds, attention_mask
        soft = self.look(pixel_values)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask.new_ones(soft.shape[:2]), attention_mask], dim=1)
        return torch.cat([soft, embeds], dim=1), attention_mask

    def second_half(self, number):
        """What stands in the second half of a block, and the adapters of its first half."""
        memories = [one.layers[number] for one in self.memory]
        if self.config.second_half == "memory":
            return memories[0], None
        mixture = self.experts.layers[number]
        experts = [self.model.layers[number].mlp, *memories]
        return lambda x: mixture(x, experts), getattr(mixture, "self_attn", None)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        pixel_values=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits of all positions, those of a picture's soft tokens first; labels are those of the text."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds, attention_mask = self.embed(input_ids, attention_mask, pixel_values)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = (positions + seen).unsqueeze(0)
        slides = self.config.sliding_window is not None
        mask = (create_sliding_window_causal_mask if slides else create_causal_mask)(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        h, turns = inputs_embeds, self.model.rotary_emb(inputs_embeds, position_ids=position_ids)
        for number, block in enumerate(self.model.layers):
            second_half, adapters = self.second_half(number)
            h = block(h, second_half, turns=turns, mask=mask, past_key_values=past_key_values, adapters=adapters)
        h = self.model.norm(h)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(h[:, kept])
        loss = None
        if labels is not None:
            labels = F.pad(labels, (h.shape[1] - labels.shape[1], 0), value=-100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None)

    @torch.no_grad()
    def generate(self, inputs=None, *args, pixel_values=None, **kwargs):
        """As in transformers. Where pictures are given, one for each row, the new tokens alone come back."""
        if pixel_values is None:
            return super().generate(inputs, *args, **kwargs)
        input_ids = kwargs.pop("input_ids", inputs)
        mask = kwargs.pop("attention_mask", None)
        mask = torch.ones_like(input_ids) if mask is None else mask
        embeds, mask = self.embed(input_ids, mask, pixel_values)
        return super().generate(None, *args, inputs_embeds=embeds, attention_mask=mask, **kwargs)
