"""Greedy generation with transformers, as a peer for `mks2-worker bench generate`.

    python generate.py make FOLDER TOKENIZER_FOLDER
    python generate.py make-vision FOLDER
    python generate.py run FOLDER --batch 8 --words 4 --tokens 64 --threads 2

`make` writes a Llama of 110 million random parameters in fp32, `make-vision` a CLIP encoder of 11 million. `run` prints one line of JSON: the median of
the seconds that a generated token takes, prompts included, and those that reading the model took.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make")
    make.add_argument("folder", type=Path)
    make.add_argument("tokenizer", type=Path)
    vision = commands.add_parser("make-vision")
    vision.add_argument("folder", type=Path)
    run = commands.add_parser("run")
    run.add_argument("folder", type=Path)
    run.add_argument("--batch", type=int, default=1)
    run.add_argument("--words", type=int, default=4)
    run.add_argument("--tokens", type=int, default=64)
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def make(args):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    # Beside its place first: what is there is whole.
    part = args.folder.with_name(args.folder.name + ".part")
    LlamaForCausalLM(config).save_pretrained(part)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(args.tokenizer / name, part / name)
    part.rename(args.folder)


def make_vision(args):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=64,
        patch_size=16,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        projection_dim=256,
    )
    part = args.folder.with_name(args.folder.name + ".part")
    CLIPVisionModelWithProjection(config).save_pretrained(part)
    part.rename(args.folder)


@torch.inference_mode()
def run(args):
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    load = time.perf_counter() - began
    model.generation_config.eos_token_id = None
    times = []
    for repetition in range(args.repetitions + 1):
        began = time.perf_counter()
        inputs = tokenizer(["fox " * args.words] * args.batch, return_tensors="pt", return_token_type_ids=False)
        found = model.generate(**inputs, do_sample=False, max_new_tokens=args.tokens, pad_token_id=0)
        new = found[:, inputs["input_ids"].shape[1] :]
        assert new.shape == (args.batch, args.tokens)
        tokenizer.batch_decode(new)
        if repetition > 0:
            times.append((time.perf_counter() - began) / new.numel())
    print(json.dumps({"token_seconds": statistics.median(times), "load_seconds": load}))


if __name__ == "__main__":
    args = arguments()
    {"make": make, "make-vision": make_vision, "run": run}[args.command](args)
