"""Writes what others make of captions, answers and choices, for the metrics of `mks2 eval`.

    python worker/tests/reference/make_metrics.py [worker/tests/fixtures/metrics] [the folder with base-decoder]

`captions.json`  corpora of tokenised captions with BLEU, ROUGE-L and CIDEr-D of pycocoevalcap
`words.json`     captions as words by Stanford's PTBTokenizer, which pycocoevalcap brings along; needs Java, and is
                 copied from the committed file where there is none
`vqa.json`       answers normalised and judged by the rules of https://visualqa.org/evaluation.html
`choices.json`   log-likelihoods of continuations by transformers, tokenised as lm-evaluation-harness does it
"""

import io
import json
import random
import re
import shutil
import sys
import tarfile
from pathlib import Path

import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
COMMITTED = HERE.parent / "fixtures/metrics"
CORPUS = HERE.parents[2] / "examples/emoji/corpus"
WORDS = "a the red fox dog cat sits on grass near big blue ball with two small children naïve 日本 it 's o-k".split()


def sentence(chance, longest=14):
    return " ".join(chance.choice(WORDS) for _ in range(chance.randrange(1, longest)))


def changed(chance, text):
    """The text with some words left out, doubled or replaced."""
    words = []
    for word in text.split():
        words += chance.choice([[word], [word], [word], [], [word, word], [chance.choice(WORDS)]])
    return " ".join(words)


def captions(chance):
    items = []
    for _ in range(188):
        references = [sentence(chance) for _ in range(chance.randrange(1, 6))]
        close = chance.random() < 0.7
        items.append((changed(chance, chance.choice(references)) if close else sentence(chance), references))
    items += [
        ("", ["a red fox"]),
        ("", ["a", "a red fox", ""]),
        ("fox", ["fox"]),
        ("fox", ["dog", "a fox"]),
        ("the the the the the the the", ["the cat sits on the grass", "the dog"]),
        ("a red fox a red fox a red fox", ["a red fox"]),
        ("日本 日本", ["日本", "日本 naïve"]),
        ("naïve nai\u0308ve", ["naïve"]),
        ("a b c d e f g h i j k l m n o p q r s t", ["a b c d"]),
        ("a b", ["a b c d e f g h i j k l m n o p q r s t"]),
        ("zebra zebra", ["a red fox", "a blue dog"]),
        ("a", ["a a", "b b b"]),
    ]
    return items


def scored(items):
    references = {number: item[1] for number, item in enumerate(items)}
    candidates = {number: [item[0]] for number, item in enumerate(items)}
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    rouge, rouges = Rouge().compute_score(references, candidates)
    cider, ciders = Cider().compute_score(references, candidates)
    return {
        "items": [{"candidate": candidate, "references": references} for candidate, references in items],
        "bleu": bleu,
        "rouge_l": float(rouge),
        "rouges": list(map(float, rouges)),
        "cider": float(cider),
        "ciders": list(map(float, ciders)),
    }


def sentences():
    """Captions as people write them, and some of the sample corpus."""
    own = """
        A man riding a wave on top of a surfboard.
        Two dogs, one black and one white, playing with a frisbee!
        A child's toy isn't on the table; it's under "the" chair (red).
        The T-shirt costs $5.00 and 10% off - really...
        A well-lit room -- with 3 people & a cat/dog.
        I can't, won't, don't, they'll, we've, he'd; I'm sure you're gonna see that she cannot.
        A sign says 'STOP' at 5:30 p.m. on Mr. Smith's U.S. street.
        the dogs' owner; O'Neil's '90s band
        “curly” quotes, the men’s room, isn’t it?
        a   double  space and a last word
        Hello... world! St. Louis etc.
        man w/ hat; e.g. this, i.e. that vs. those 5th 2nd 1990s
        black-and-white t.v. set, a TV's remote
        U.S.A. at 9 a.m.
        A 10-year-old boy and/or girl takes a 3/4 view at 12:30 with 1,000 people.
        room #12 is 50% off * star
        the man's "no parking" sign.
        a boy's and girls' room: six o'clock
        dogs,cats;birds:fish
        co-worker's e-mail's
        A cat . and a dog ,too !
        'tis the season, 'twas the night
        vitamin c.
        wait...what?
        a photo of a cat [indoors] {cropped}
        It is 2.5 feet tall. 3-D picture of a 4x4
        .
        ?!
        wow!! what?? no?! end.. so.... a -- b;; c,, d::
    """
    texts = [line.strip() for line in own.strip().splitlines()]
    with tarfile.open(CORPUS / "emoji-00001.tar") as shard:
        names = sorted(name for name in shard.getnames() if name.endswith(".txt"))
        for name in names[::3]:
            texts.append(io.TextIOWrapper(shard.extractfile(name), "utf-8").read().strip())
    return texts


def words(out):
    if shutil.which("java") is None:
        print("there is no Java: words.json is the committed one")
        if out != COMMITTED:
            shutil.copy(COMMITTED / "words.json", out / "words.json")
        return
    texts = sentences()
    found = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    write(out / "words.json", [{"text": text, "words": found[number][0]} for number, text in enumerate(texts)])


NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split()))
MARKS = ";/[]\"{}()=+\\_-><@`,?!"
# Some of the challenge's table, enough for the answers below.
SHORTENED = {"dont": "don't", "isnt": "isn't", "couldnt've": "couldn't've", "couldn'tve": "couldn't've", "oclock": "o'clock"}
SHORTENED |= {"yall'll": "y'all'll", "y'allll": "y'all'll", "twas": "'twas", "theyre": "they're", "maam": "ma'am"}


def normalised(answer):
    text = re.sub(r"[\n\t]", " ", answer).strip()
    bare = text
    for mark in MARKS:
        gone = mark + " " in text or " " + mark in text or re.search(r"\d,\d", text)
        bare = bare.replace(mark, "" if gone else " ")
    bare = re.sub(r"\.(?!\d)", "", bare).lower()
    kept = [NUMBERS.get(word, word) for word in bare.split()]
    return " ".join(SHORTENED.get(word, word) for word in kept if word not in ("a", "an", "the"))


def judged(answer, people):
    answer = normalised(answer)
    people = [normalised(own) for own in people]
    shares = []
    for left_out in range(len(people)):
        others = people[:left_out] + people[left_out + 1 :]
        shares.append(min(1.0, others.count(answer) / 3))
    return sum(shares) / len(shares)


def vqa(chance):
    answers = """yes|No.|the dog|A  Red Fox|two|ten|none|dont|DONT|isnt it|couldnt've|couldn'tve|100,978|1,000 people|3.5|v. 2|2.|.5
        girl's|2:50 pm|t-shirt|t -shirt|x-y -z|black/white|"stop"|what?!|u.s.a.|an apple a day|oclock|yall'll|y'allll|twas|theyre
        maam|one,two|one, two|it's|its|lets|well|im|e-mail@home|[cat]|(dog)|a|the|.|?|  |naïve|日本|Three.|a+b=c|under_score|5 , 6|hi\nthere"""
    texts = [text.strip(" ") for line in answers.split("\n        ") for text in line.split("|")]
    cases = [{"answer": text, "normalised": normalised(text)} for text in texts]
    pool = ["two", "2", "Two.", "three", "a two", "dont", "don't", "red fox", "the red fox", "no"]
    for _ in range(60):
        people = [chance.choice(pool[: chance.randrange(1, len(pool) + 1)]) for _ in range(10)]
        answer = chance.choice(pool)
        cases.append({"answer": answer, "normalised": normalised(answer), "people": people, "accuracy": judged(answer, people)})
    return cases


QUESTIONS = [
    ("the red", [" fox", " whale", " blue fox"]),
    ("What color is the fox?", [" red", " blue", " a very dark red"]),
    ("Question: is it blue?\nAnswer: ", ["yes", "no", "maybe, naïve"]),
    ("", ["the fox", "a whale"]),
    ("日本", [" red", "語"]),
]


def choices(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    cases = []
    for prompt, continuations in QUESTIONS:
        sums = []
        for continuation in continuations:
            context = prompt.rstrip()
            ids = tokenizer(context + prompt[len(context) :] + continuation)["input_ids"]
            first = len(tokenizer(context)["input_ids"])
            with torch.no_grad():
                likely = network(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(likely[at - 1, ids[at]]) for at in range(first, len(ids))))
        cases.append({"prompt": prompt, "continuations": continuations, "log_likelihoods": sums})
    return cases


def write(path, rows):
    """A list, a line for each of its rows."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main(out, models):
    out, chance = Path(out), random.Random(7)
    out.mkdir(parents=True, exist_ok=True)
    items = captions(chance)
    small = [items[:1], items[:2], [("fox", ["fox"]), ("", ["a dog"])], [("a red fox", ["a red fox"])] * 3]
    write(out / "captions.json", [scored(corpus) for corpus in [items, *small]])
    words(out)
    write(out / "vqa.json", vqa(chance))
    write(out / "choices.json", choices(Path(models) / "base-decoder"))


if __name__ == "__main__":
    arguments = sys.argv[1:] + [str(COMMITTED), str(COMMITTED.parent / "pretrained")][len(sys.argv) - 1 :]
    main(*arguments)
