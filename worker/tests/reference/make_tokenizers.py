"""Writes small tokenizers in the layouts of published models, and the tokens that transformers gives.

    python worker/tests/reference/make_tokenizers.py [worker/tests/fixtures/pretrained/tokenizers]

Each folder is laid out as one family published it: normalizer, splitting, added tokens, post-processor and the words
of `tokenizer_config.json`; only vocabulary and merges are trained here, on a few lines. What
`AutoTokenizer.from_pretrained` makes of them is the reference. `tokens.json` has, for each of them, the tokens of the first
texts of `nasty.py`, with what a post-processor adds and without, and a digest of each hundred of all texts.
"""

import json
import sys
import tempfile
from pathlib import Path

import nasty
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

SHOWN = 40
BLOCK = 100
MERGES = 120
LINES = [
    "The red fox is a picture of the emoji that you'll find, isn't it? We're here and they've been there, I'm sure.",
    "    four spaces,  two,\ttabs\n\nand   lines 1234567890 12,345.67 2024 == != => (a) [b] {c} \"quoted\" 'single'",
    "Größe naïve café élan Ångström übermäßig, Привет мир как дела, Γειά σου Κόσμε, שלום עולם, مرحبا بالعالم",
    "日本語のテキスト 中文字符 한국어 텍스트 नमस्ते दुनिया สวัสดีชาวโลก 🦊🐳🏳️‍🌈👨‍👩‍👧 👍🏽",
    "the the the of of and and in in to to ing ing tion tion er er on on he he re re at at en en nd nd",
]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def special(text, **how):
    return AddedToken(text, special=True, normalized=False, **how)


def sentencepiece(begins, names):
    """Pieces with a space before them, and bytes for what has no piece."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+|▁+"), behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=300, limit_alphabet=150, show_progress=False)
    trained.train_from_iterator(LINES, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]][:MERGES]
    names = ["<unk>", "<s>", "</s>", *names]
    pieces = names + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [left + right for left, right in merges]
    pieces += [piece for piece in sorted(model["vocab"]) if len(piece) == 1 and piece not in pieces]
    made = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if begins:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([special(name) for name in names])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return made


def byte_level(pattern, normalizer=None, **model):
    made = Tokenizer(models.BPE(**model))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if normalizer:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(LINES, trainer)
    return made


def added(text):
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def llama_2():
    config = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": added("<s>"), "clean_up_tokenization_spaces": False,
        "eos_token": added("</s>"), "legacy": False, "pad_token": None, "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", "unk_token": added("<unk>"),
    }
    return sentencepiece(True, []), "llama", config


def mistral():
    names = ["[INST]", "[/INST]", "[TOOL_CALLS]"]
    config = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "clean_up_tokenization_spaces": False,
        "eos_token": "</s>", "legacy": False, "pad_token": None, "sp_model_kwargs": {}, "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "use_default_system_prompt": False,
    }
    return sentencepiece(False, names), "mistral", config


def llama_3():
    made = byte_level(LLAMA_3, ignore_merges=True)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    made.add_special_tokens([special(name) for name in names])
    begin = made.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", begin)],
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    config = {
        "bos_token": "<|begin_of_text|>", "clean_up_tokenization_spaces": True, "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"], "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return made, "llama", config


def qwen_2():
    made = byte_level(QWEN_2, normalizers.NFC())
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens([special(name) for name in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]])
    made.add_tokens([AddedToken("<tool_call>", normalized=False)])
    config = {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "errors": "replace", "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }
    return made, "qwen2", config


FAMILIES = {"llama-2": llama_2, "llama-3": llama_3, "mistral": mistral, "qwen2": qwen_2}


def write(folder, made, model_type, config):
    folder.mkdir(parents=True, exist_ok=True)
    # As small as JSON gets: there are no line breaks in it.
    whole = json.loads(made.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False, separators=(",", ":")) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}) + "\n")


def main(out):
    texts = nasty.texts()
    found = {}
    for name, build in FAMILIES.items():
        write(out / name, *build())
        with tempfile.TemporaryDirectory() as copy:
            for file in (out / name).iterdir():
                (Path(copy) / file.name).write_bytes(file.read_bytes())
            theirs = AutoTokenizer.from_pretrained(copy)
        print(name, type(theirs).__name__, len(theirs))
        pairs = [
            [theirs(text)["input_ids"], theirs(text, add_special_tokens=False)["input_ids"]] for text in texts
        ]
        digests = [
            nasty.digest(numbers for pair in pairs[at : at + BLOCK] for numbers in pair)
            for at in range(0, len(pairs), BLOCK)
        ]
        shown = [bare for _, bare in pairs[:SHOWN]]
        found[name] = {"vocab_size": len(theirs), "bare": shown, "digests": digests}
    (out / "tokens.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    here = Path(__file__).parent
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "fixtures" / "pretrained" / "tokenizers")
