"""Writes small random models as transformers does, and what it computes with them.

    python worker/tests/reference/make_pretrained.py [worker/tests/fixtures/pretrained]

Needs torch, transformers and safetensors as in requirements.txt. Each folder is one that
`save_pretrained` wrote, beside `expected.safetensors`: `input/*`, `output/*` and `output_bf16/*`, of the
same model in bf16. A decoder's outputs are its logits and the states behind each block, the last one normed; a visual encoder's are its
global feature and the patch features behind the last block but one. `base-decoder` and `base-vision` are there to be trained on: in
half precision, with a tokenizer, and `tokens.json` with what it makes of some texts, and how the model goes on from them.
`base-q-former` is a BLIP-2 whose Q-Former fits them, with what that finds in random features.
`greedy.json` has what each decoder generates from random prompts.
"""

import json
import sys
from pathlib import Path

import torch
from make_fixtures import randomize
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 53
TOKENS = 24
PROMPTS = 23
NEW = 12
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PICTURE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 16,
    "attn_implementation": "eager",
}
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}


def decoder(kind, config, **changes):
    return kind(config(**(SMALL | changes)))


def vision(**changes):
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**(PICTURE | changes)))


def clip(**changes):
    """Both sides in one folder, as OpenAI published them."""
    picture = PICTURE | changes
    return CLIPModel(
        CLIPConfig(
            text_config=TEXT, vision_config=picture, projection_dim=picture["projection_dim"], attn_implementation="eager"
        )
    )


# Name, model, and the size of a file above which there are many.
CASES = {
    "llama-2": lambda: decoder(LlamaForCausalLM, LlamaConfig, num_key_value_heads=4),
    "llama-odd-heads": lambda: decoder(
        LlamaForCausalLM, LlamaConfig, hidden_size=30, num_attention_heads=5, num_key_value_heads=1
    ),
    "llama-3": lambda: decoder(LlamaForCausalLM, LlamaConfig, rope_parameters=LLAMA3),
    "llama-3-tied": lambda: decoder(
        LlamaForCausalLM, LlamaConfig, rope_parameters=LLAMA3, tie_word_embeddings=True, num_hidden_layers=3
    ),
    "llama-stretched": lambda: decoder(
        LlamaForCausalLM,
        LlamaConfig,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ),
    "mistral": lambda: decoder(MistralForCausalLM, MistralConfig, sliding_window=7),
    "mistral-wide-heads": lambda: decoder(
        MistralForCausalLM, MistralConfig, sliding_window=None, head_dim=10, num_attention_heads=3, num_key_value_heads=3
    ),
    "qwen2": lambda: decoder(Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
    "qwen2.5": lambda: decoder(
        Qwen2ForCausalLM, Qwen2Config, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-5
    ),
    "clip-vit-b-32": lambda: clip(),
    "clip-vit-l-14": lambda: vision(image_size=28, patch_size=14, num_attention_heads=3),
    "clip-vit-l-14-336": lambda: vision(image_size=42, patch_size=14, num_hidden_layers=2),
    "clip-vit-bigg-14": lambda: vision(
        image_size=28, patch_size=14, hidden_size=26, num_attention_heads=2, intermediate_size=60, hidden_act="gelu"
    ),
}
SHARDED = {"llama-3", "qwen2.5", "clip-vit-l-14"}


def inputs_of(model):
    if hasattr(model, "vision_model"):
        config = getattr(model.config, "vision_config", model.config)
        return {"pixels": torch.randn(2, 3, config.image_size, config.image_size)}
    return {"ids": torch.randint(VOCAB, (2, TOKENS))}


def outputs(model, inputs):
    if hasattr(model, "vision_model"):
        pixels = inputs["pixels"].to(model.dtype)
        seen = model.vision_model(pixels, output_hidden_states=True)
        return {
            "global": model.visual_projection(seen.pooler_output),
            "patches": seen.hidden_states[-2][:, 1:],
        }
    seen = model(inputs["ids"], output_hidden_states=True)
    states = {f"block.{number}": state for number, state in enumerate(seen.hidden_states) if number > 0}
    return {"logits": seen.logits} | states


def greedy(model, prompt, count):
    """The `count` likeliest tokens behind `prompt`, whatever they are."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return found[0, len(prompt) :].tolist()


def continuations(model):
    """Of prompts of all lengths, some longer than a sliding window."""
    prompts = [torch.randint(VOCAB, (1 + number,)).tolist() for number in range(PROMPTS)]
    return [{"prompt": prompt, "tokens": greedy(model, prompt, NEW)} for prompt in prompts]


BEGIN, END = "<|begin|>", "<|end|>"
TEXTS = [
    "the red fox",
    "a picture of the blue whale",
    "What color is the grapes emoji?",
    "What color is the fox?",
    "naïve café, 12,345.67 €",
    "  two spaces,\ttab\nand line",
    "日本語 and 🦊🏳️‍🌈",
    f"a text with {END} in it",
    "",
]


def tokenizer():
    """Byte-level, as Llama 3's: the begin token comes from the post-processor."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    begin = made.token_to_id(BEGIN)
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BEGIN, eos_token=END)


def base(out: Path) -> None:
    wide = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 320, "max_position_embeddings": 128}
    for name, model, dtype in [
        ("base-decoder", decoder(LlamaForCausalLM, LlamaConfig, **wide), torch.bfloat16),
        ("base-vision", vision(), torch.float16),
    ]:
        randomize(model, len(name), scale=0.5)
        model.to(dtype).save_pretrained(out / name, max_shard_size="30KB")
        (out / name / "generation_config.json").unlink(missing_ok=True)
    made = tokenizer()
    made.save_pretrained(out / "base-decoder")
    model = LlamaForCausalLM.from_pretrained(out / "base-decoder", dtype=torch.float32)
    expected = []
    for text in TEXTS:
        ids = made(text)["input_ids"]
        expected.append({"text": text, "ids": ids, "greedy": greedy(model, ids, NEW)})
    (out / "base-decoder" / "tokens.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


def blip(out: Path) -> None:
    """A Q-Former for the features of `base-vision`, within the model that transformers saves it in."""
    vision = Blip2VisionConfig(
        hidden_size=PICTURE["hidden_size"], intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    q_former = Blip2QFormerConfig(
        vocab_size=VOCAB,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=3,
    )
    text = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
        max_position_embeddings=8,
    )
    config = Blip2Config(
        vision_config=vision, qformer_config=q_former, text_config=text, num_query_tokens=6, attn_implementation="eager"
    )
    model = Blip2ForConditionalGeneration(config).eval()
    randomize(model, 60, scale=0.5)
    folder = out / "base-q-former"
    model.half().save_pretrained(folder)
    model.float()
    (folder / "generation_config.json").unlink(missing_ok=True)
    torch.manual_seed(60)
    features = torch.randn(2, 7, PICTURE["hidden_size"])
    queries = model.query_tokens if hasattr(model, "query_tokens") else model.model.query_tokens
    inner = model.qformer if hasattr(model, "qformer") else model.model.qformer
    with torch.no_grad():
        found = inner(query_embeds=queries.expand(2, -1, -1), encoder_hidden_states=features).last_hidden_state
    tensors = {"input/features": features, "output/queries": found.contiguous()}
    save_file(tensors, folder / "expected.safetensors")


def main(out: Path) -> None:
    base(out)
    blip(out)
    generated = {}
    for number, (name, build) in enumerate(CASES.items()):
        model = build().eval()
        # Half as large as usual: attention that decides sharply turns the last bits of bf16 into percents.
        randomize(model, 100 + number, scale=0.5)
        folder = out / name
        size = "12KB" if name in SHARDED else "1GB"
        model.save_pretrained(folder, max_shard_size=size)
        (folder / "generation_config.json").unlink(missing_ok=True)
        torch.manual_seed(number)
        with torch.no_grad():
            inputs = inputs_of(model)
            found = outputs(model, inputs)
            if not hasattr(model, "vision_model"):
                generated[name] = continuations(model)
            rounded = outputs(model.to(torch.bfloat16), inputs)
        groups = {"input": inputs, "output": found, "output_bf16": rounded}
        tensors = {
            f"{group}/{key}": value.to(torch.float32 if value.is_floating_point() else value.dtype).clone().contiguous()
            for group, values in groups.items()
            for key, value in values.items()
        }
        save_file(tensors, folder / "expected.safetensors")
    (out / "greedy.json").write_text(json.dumps(generated, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    here = Path(__file__).parent
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "fixtures" / "pretrained")
