"""Exported models in transformers and PEFT beside the runs that they come from.

    python export.py target/debug target/export

Trains tiny jobs on the sample corpus, exports each of their stages in all forms, and loads them. Compared with
what `mks2-worker` says of the runs themselves: log-probabilities of all tokens at every place of a prompt and
behind it, with a picture and without; tokens, by the tokenizer alone and by its chat template; and what is
generated greedily, with kept keys and values and without. Needs the packages of requirements-tools.txt; no network.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples/emoji/corpus"
CORPORA = {
    "emoji": "emoji-{00000..00003}.tar",
    "colors-train": "color-questions-train.jsonl",
    "colors-test": "color-questions-test.jsonl",
}
MODELS = ROOT / "worker/tests/fixtures/pretrained"
QUICK = (ROOT / "examples/emoji/quick.toml").read_text()
EXPERTS = "stage.experts.experts"
# The quick job as it is, and with what it leaves out: two gated memories, adapters and routers everywhere, a head
# of its own; one that starts from published models; and one with a Q-Former.
JOBS = {
    "quick": [],
    "other": [
        "model.memory.form=gated",
        "model.decoder.tie_word_embeddings=false",
        "stage.train.steps=8",
        'stage.experts.from=["bootstrap", "memory", "train"]',
        f'{EXPERTS}.memories=["train", "memory"]',
        f"{EXPERTS}.adapter_blocks=[]",
        f"{EXPERTS}.router_blocks=[]",
        f"{EXPERTS}.adapt_attention=true",
        f"{EXPERTS}.answer_after_end=false",
        f'{EXPERTS}.question=It\'s "{{question}}" ',
        "stage.lora.experts.adapt_attention=true",
    ],
    "published": [
        f"stage.bootstrap.pretrained.decoder={MODELS / 'base-decoder'}",
        f"stage.bootstrap.pretrained.vision={MODELS / 'base-vision'}",
        "model.decoder.max_text_tokens=20",
        f"{EXPERTS}.pictures=true",
    ],
    "queries": [
        "model.bridge.kind=q-former",
        "model.bridge.num_query_tokens=3",
        "model.bridge.hidden_size=48",
        "model.bridge.intermediate_size=96",
        "model.bridge.num_hidden_layers=3",
        "model.bridge.num_attention_heads=4",
        f"{EXPERTS}.pictures=true",
    ],
}
STAGES = ["bootstrap", "memory", "experts", "shuffled", "lora"]
TEXTS = ["What color is the fox?", "a whale", "Ünï 🦊"]
NEW = 6
NEAR = 1e-5


class Mks2:
    """The programs, as a user has them."""

    def __init__(self, programs, folder):
        self.programs, self.folder = Path(programs).resolve(), Path(folder).resolve()

    def run(self, *words):
        words = [str(word) for word in words]
        done = subprocess.run([self.programs / "mks2", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        return done.stdout.decode()

    def job(self, name):
        """The quick job without its evaluation, or with published models in the place of the first stage."""
        training = QUICK.split('[[stage]]\nname = "evaluate"')[0]
        _, memory = training.split('[[stage]]\nname = "memory"')
        if name == "other":
            # A second memory, with a name that means something else in PyTorch.
            second, _ = memory.split("[[stage]]", 1)
            training += f'[[stage]]\nname = "train"{second}'
            stages = training.split("[[stage]]")
            return "[[stage]]".join([*stages[:3], stages[-1], *stages[3:-1]])
        if name in ("quick", "queries"):
            return training
        tables = [self.run("model", "show", MODELS / part, "--job") for part in ("base-decoder", "base-vision")]
        retrieval = "[model.retrieval]\ndim = 16\n[model.memory]\nwidth = 48\n"
        base = '[[stage]]\nname = "bootstrap"\nkind = "pretrained"\n'
        head, _ = training.split("[tokenizer]")
        return "\n".join([head, *tables, retrieval, base, '[[stage]]\nname = "memory"', memory])

    def train(self, name, settings):
        run = self.folder / f"run-{name}"
        sets = [f"data.{corpus}.url={self.folder / corpus}" for corpus in CORPORA]
        for stage in STAGES[name == "published" :]:
            sets += [f"stage.{stage}.steps=8", f"stage.{stage}.batch_size=16"]
        job = self.folder / f"{name}.toml"
        job.write_text(self.job(name))
        options = [word for setting in sets + settings for word in ("--set", setting)]
        self.run("train", job, "--run", run, "--workers", 2, "--quiet", *options)
        return run

    def export(self, form, run, stage, *options):
        to = self.folder / f"{run.name}-{stage}-{form}{''.join(options)}"
        self.run("--quiet", "export", form, run, "--stage", stage, "--out", to, *options)
        return to


class Ours:
    """What the worker's program says of a stage."""

    def __init__(self, mks2, run, stage):
        journal = [json.loads(path.read_text()) for path in sorted((run / "journal").iterdir())]
        trained = {}
        for entry in found(journal, "manifest_digest"):
            keys = ("stage", "manifest_path", "manifest_digest")
            trained[entry["stage"]] = {key: entry[key] for key in keys}
        source = {
            "kind": "run",
            "job_toml": (run / "config.resolved.toml").read_text(),
            "url": str(run),
            "stage": stage,
            "trained": list(trained.values()),
        }
        command = [mks2.programs / "mks2-worker", "generate"]
        self.program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.say({"model": source, "device": "cpu", "threads": 1, "batch": 1})
        self.ready = self.hear()

    def say(self, what):
        self.program.stdin.write(json.dumps(what) + "\n")
        self.program.stdin.flush()

    def hear(self):
        event = json.loads(self.program.stdout.readline())
        assert event["event"] not in ("failed", "refused"), event
        return event

    def ask(self, text, picture, vocabulary, template):
        """Tokens of the prompt, tokens behind it, and log-probabilities [places, vocabulary]."""
        prompt = {"ask": "prompt", "id": 1, "what": {"text" if template else "raw": text}, "max_tokens": NEW}
        prompt |= {"score": {"prompt": 1 << 20, "top": vocabulary}, "picture": picture}
        self.say({key: value for key, value in prompt.items() if value is not None})
        while (event := self.hear())["event"] != "done":
            pass
        scores = event["scores"]
        ids = [score["token"]["id"] for score in scores]
        table = torch.zeros(len(ids), vocabulary, dtype=torch.float64)
        for row, score in zip(table, scores):
            for likely in score["top"]:
                row[likely["id"]] = likely["logprob"]
        # The end token has a score of its own, and the prompt's first one none.
        behind = len(ids) - len(event["tokens"])
        prompt_ids = ids[: behind - (event["end"] == "stop")]
        return prompt_ids, event["tokens"], table[1:]

    def close(self):
        self.program.stdin.close()
        self.program.wait()


def found(node, key):
    """All objects in a tree that have a key, in order."""
    if isinstance(node, dict):
        if key in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from found(one, key)


class Tally:
    def __init__(self):
        self.far, self.places, self.texts = 0.0, 0, 0

    def compare(self, name, ours, theirs):
        assert ours.shape == theirs.shape, f"{name}: {ours.shape}, expected {theirs.shape}"
        far = ((ours - theirs).abs().max() / ours.abs().max()).item()
        assert far < NEAR, f"{name}: log-probabilities are {far:.1e} apart"
        self.far, self.places = max(self.far, far), self.places + len(ours)


def picture(path, side):
    """A picture that needs no scaling, as the command line and as transformers have it."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    image.save(path)
    return base64.b64encode(path.read_bytes()).decode(), image


@torch.no_grad()
def compare(tally, ours, model, tokenizer, texts, seen, template):
    """The same texts, behind a picture or alone."""
    encoded, pixels = seen
    vocabulary = model.config.vocab_size
    for text in texts:
        name = f"{model.config.model_type} {tokenizer.name_or_path}: {text}"
        prompt, new, table = ours.ask(text, encoded, vocabulary, template)
        if template:
            inputs = tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False)
        else:
            inputs = tokenizer(text)["input_ids"]
        assert inputs == prompt, f"{name}: tokens {inputs}, expected {prompt}"
        ids = torch.tensor([prompt + new])
        looks = {} if pixels is None else {"pixel_values": pixels}
        logits = model(input_ids=ids, **looks).logits[0].double().log_softmax(dim=-1)
        # Those of the picture's soft tokens are no text's; the last one is behind the last score.
        theirs = logits[-ids.shape[1] :][: len(table)]
        tally.compare(name, table[: len(theirs)], theirs)
        for keep in [True, False]:
            if pixels is not None and not keep:
                continue
            ids = torch.tensor([prompt])
            mask = torch.ones_like(ids)
            generated = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=keep, **looks
            )[0].tolist()
            generated = generated if pixels is not None else generated[len(prompt) :]
            generated = [token for token in generated if token != tokenizer.eos_token_id]
            assert generated == new, f"{name}: {generated}, expected {new}"
            tally.texts += 1


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model.dtype == torch.float32
    return model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def check(mks2, tally, run, stage):
    ours = Ours(mks2, run, stage)
    asks = stage not in ("bootstrap", "memory")
    for options in [[], ["--merge"]] if asks else [["--max-shard-size", "100KB"]]:
        folder = mks2.export("hf", run, stage, *options)
        model, tokenizer = load(folder)
        plain = stage == "bootstrap" or (stage == "lora" and options)
        assert model.config.model_type == ("llama" if plain else "mks2")
        compare(tally, ours, model, tokenizer, TEXTS, (None, None), False)
        if asks:
            compare(tally, ours, model, tokenizer, TEXTS[:2], (None, None), True)
        if ours.ready["sees"]:
            side = model.config.vision_config.image_size
            encoded, image = picture(mks2.folder / "picture.png", side)
            pixels = CLIPImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
            compare(tally, ours, model, tokenizer, ["", *TEXTS[:1]], (encoded, pixels), False)
    if stage == "lora":
        base, tokenizer = load(mks2.export("hf", run, "bootstrap"))
        model = PeftModel.from_pretrained(base, mks2.export("peft", run, stage)).eval()
        compare(tally, ours, model, tokenizer, TEXTS, (None, None), False)
    ours.close()


def main(programs, folder):
    mks2, tally = Mks2(programs, folder), Tally()
    shutil.rmtree(mks2.folder, ignore_errors=True)
    mks2.folder.mkdir(parents=True)
    for corpus, source in CORPORA.items():
        mks2.run("data", "import", CORPUS / source, "--out", mks2.folder / corpus)
    for job, settings in JOBS.items():
        run = mks2.train(job, settings)
        for stage in STAGES:
            check(mks2, tally, run, stage)
    print(
        f"exported models of {len(JOBS) * len(STAGES)} stages say the same: log-probabilities at {tally.places} "
        f"places at most {tally.far:.1e} apart, {tally.texts} generated texts the same"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
