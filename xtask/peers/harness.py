"""lm-evaluation-harness on `mks2 serve`, and `mks2 eval`, beside its own backend for transformers.

    python harness.py target/release/mks2 worker/tests/fixtures/pretrained/base-decoder target/harness

A few rows, written here, in the formats of eight tasks: what is asked and how is said by task files as the
harness has them. Both backends get the same tasks; scores must be equal, log-likelihoods as near as fp32 has
them, generated texts the same. Needs the packages of requirements-tools.txt; no network but the loopback.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import make_table  # noqa: E402

# Tokens that the fixture has positions for, less the one that is generated behind a scored text.
LONGEST = 127
NEAR = 2e-5
LETTERS = "ABCDE"


def lettered(question, choices, right):
    texts = {"label": list(LETTERS[: len(choices)]), "text": choices}
    return {"question": question, "choices": texts, "answerKey": LETTERS[right]}


CHOICE = "doc_to_target: '{{choices.label.index(answerKey)}}'\ndoc_to_choice: '{{choices.text}}'\n"
# Name: how it is asked, and its rows.
CHOICES = {
    "piqa": (
        "doc_to_text: 'Question: {{goal}}\\nAnswer:'\ndoc_to_target: label\ndoc_to_choice: '{{[sol1, sol2]}}'\n",
        [
            {"goal": "To cool soup", "sol1": "blow on it.", "sol2": "heat it.", "label": 0},
            {"goal": "To open a jar", "sol1": "close its lid.", "sol2": "turn its lid.", "label": 1},
        ],
    ),
    "openbookqa": (
        "doc_to_text: question_stem\n" + CHOICE,
        [
            {
                "question_stem": "A frog begins its life as",
                "choices": {"label": list("ABCD"), "text": ["a stone", "an egg", "a leaf", "a bird"]},
                "answerKey": "B",
            },
            {
                "question_stem": "The sun gives us",
                "choices": {"label": list("ABCD"), "text": ["light", "milk", "shoes", "rain"]},
                "answerKey": "A",
            },
        ],
    ),
    "commonsenseqa": (
        "doc_to_text: 'Question: {{question}}\\nAnswer:'\n" + CHOICE,
        [
            lettered("Where does a whale live?", ["desert", "sea", "tree", "house", "sky"], 1),
            lettered("What do you eat with?", ["spoon", "hat", "door", "cloud", "road"], 0),
        ],
    ),
    "riddlesense": (
        "doc_to_text: 'Riddle: {{question}}\\nAnswer:'\n" + CHOICE,
        [lettered("I have hands and do not clap. What am I?", ["clock", "dog", "cup", "shoe", "sea"], 0)],
    ),
    "social_iqa": (
        "doc_to_text: '{{context}} {{question}}'\ndoc_to_target: '{{label|int - 1}}'\n"
        "doc_to_choice: '{{[answerA, answerB, answerC]}}'\n",
        [
            {
                "context": "Kim gave Lee a cake.",
                "question": "How does Lee feel?",
                "answerA": "glad",
                "answerB": "cold",
                "answerC": "tall",
                "label": "1",
            }
        ],
    ),
    "strategyqa": (
        "doc_to_text: '{{question}}\\nAnswer:'\ndoc_to_target: '{{answer|int}}'\ndoc_to_choice: ['no', 'yes']\n",
        [
            {"question": "Can a fox outlive a mountain?", "answer": False},
            {"question": "Is ice colder than soup?", "answer": True},
        ],
    ),
    "mmlu": (
        "doc_to_text: '{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\n"
        "D. {{choices[3]}}\\nAnswer:'\ndoc_to_target: answer\ndoc_to_choice: ['A', 'B', 'C', 'D']\n",
        [
            {"question": "Two and two is", "choices": ["1", "2", "3", "4"], "answer": 3},
            {"question": "A red fruit is", "choices": ["grape", "cherry", "lime", "plum"], "answer": 1},
        ],
    ),
}
COQA = [
    {"story": "A fox ran.", "question": "Who ran?", "answer": "a fox"},
    {"story": "The sea was blue, 日本語.", "question": "What was blue?", "answer": "the sea"},
]


def write_tasks(folder):
    def write(name, kind, how, rows):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        head = f"task: local_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {data}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: train\noutput_type: {kind}\n{how}")
        return f"local_{name}"

    metrics = "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    names = [write(name, "multiple_choice", how + metrics, rows) for name, (how, rows) in CHOICES.items()]
    generated = (
        "doc_to_text: '{{story}}\\n\\nQ: {{question}}\\n\\nA:'\ndoc_to_target: answer\n"
        'generation_kwargs:\n  until: ["\\nQ:"]\n  max_gen_toks: 16\n  do_sample: false\n  temperature: 0\n'
        "metric_list:\n  - metric: exact_match\n"
    )
    return names + [write("coqa", "generate_until", generated, COQA)]


def evaluate(model, arguments, folder, names):
    found = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder)),
        batch_size=1,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    return found["results"], found["samples"]


def served(program, model, folder, names):
    command = [program, "serve", model, "--name", "served", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            while " at http://" not in (line := server.stderr.readline()):
                if not line:
                    sys.exit("mks2 serve has ended")
            url = line.split(" at ")[1].strip() + "/completions"
            arguments = f"model=served,base_url={url},tokenizer_backend=remote,max_length={LONGEST},num_concurrent=4"
            return evaluate("local-completions", arguments, folder, names)
        finally:
            server.terminate()


def measured(program, model, folder, asked):
    """`mks2 eval` on the questions with choices that the harness has asked."""
    files = []
    for name, samples in asked.items():
        rows = [
            {
                "prompt": sample["arguments"][0][0],
                "choices": [continuation.removeprefix(" ") for _, continuation in sample["arguments"]],
                "answer": int(sample["target"]),
            }
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ]
        (folder / f"eval_{name}.json").write_text(json.dumps(rows))
        files.append(folder / f"{name}.toml")
        files[-1].write_text(f'kind = "multiple-choice"\ndata = "eval_{name}.json"\nprompt = "{{prompt}}"\n')
    out = folder / "eval"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([program, "eval", model, "--out", out, "--task", *files], check=True, stdout=subprocess.DEVNULL)
    samples = {name: (out / f"samples_{name}.jsonl").read_text().splitlines() for name in asked}
    return json.loads((out / "results.json").read_text()), {
        name: [json.loads(line) for line in lines] for name, lines in samples.items()
    }


def answers(sample):
    """Log-likelihoods with whether each is the likeliest, or a generated text."""
    return [value for response in sample["resps"] for value in response]


def compare(ours, theirs):
    scored = generated = 0
    far = 0.0
    for name, samples in theirs.items():
        pairs = zip(sorted(ours[name], key=lambda s: s["doc_id"]), sorted(samples, key=lambda s: s["doc_id"]))
        for mine, right in pairs:
            for a, b in zip(answers(mine), answers(right), strict=True):
                if isinstance(b, str):
                    assert a == b, f"{name}: {a!r}, expected {b!r}"
                    generated += 1
                else:
                    assert str(a[1]) == str(b[1]), f"{name}: {a}, expected {b}"
                    far = max(far, abs(float(a[0]) - float(b[0])))
                    scored += 1
    assert far < NEAR, f"log-likelihoods are up to {far:.1e} apart"
    return scored, generated, far


def main(program, model, folder):
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    names = write_tasks(folder)
    our_scores, ours = served(program, model, folder, names)
    hf = f"pretrained={model},dtype=float32,max_length={LONGEST},add_bos_token=False"
    their_scores, theirs = evaluate("hf", hf, folder, names)
    scored, generated, far = compare(ours, theirs)
    for name in names:
        metrics = {key: value for key, value in their_scores[name].items() if isinstance(value, (int, float))}
        found = {key: our_scores[name][key] for key in metrics}
        assert found == metrics, f"{name}: {found}, expected {metrics}"
    choices = [name for name in names if name != "local_coqa"]
    # It begins texts as the tokenizer does, with the begin token.
    right_scores, right = evaluate("hf", hf.replace("add_bos_token=False", "add_bos_token=True"), folder, choices)
    results, found = measured(program, model, folder, right)
    count, _, apart = compare(found, right)
    for name in choices:
        for key in ("acc,none", "acc_norm,none"):
            assert results["results"][name][key] == right_scores[name][key], f"{name} {key}: {results['results'][name]}"
    make_table(results)
    print(
        f"mks2 eval: {len(choices)} tasks score alike, {count} log-likelihoods at most {apart:.1e} apart; the harness "
        "reads its results"
    )
    print(
        f"{len(names)} tasks score alike: {scored} log-likelihoods at most {far:.1e} apart, "
        f"{generated} generated texts the same"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
