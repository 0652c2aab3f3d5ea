"""lm-eval's `local-completions`, unchanged, agrees through the server with transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TASK = """
task: closing
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
"""
PROGRAM = """
import json, sys
import lm_eval, torch, transformers
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

torch.set_num_threads(1)


class Transformers(TemplateLM):
    # lm-eval's own "hf" needs accelerate; this is its arithmetic, one sequence at a time.

    def __init__(self, directory):
        super().__init__()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()

    @property
    def eot_token_id(self):
        return self.tokenizer.eos_token_id

    def tok_encode(self, string, add_special_tokens=False, **_):
        return self.tokenizer.encode(string, add_special_tokens=False)

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, **_):
        found = []
        for _, context, continuation in requests:
            tokens = torch.tensor([context + continuation])
            scores = self.model(tokens).logits[0].log_softmax(-1)[len(context) - 1 : -1]
            wanted = tokens[0, len(context) :]
            logprob = scores.gather(1, wanted[:, None]).sum().item()
            found.append((logprob, bool((scores.argmax(-1) == wanted).all())))
        return found

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


folder, out, directory, runs = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
tasks = TaskManager(include_path=folder, include_defaults=False)
results = {}
for name, args in {"transformers": None, **runs}.items():
    found = lm_eval.simple_evaluate(
        model="local-completions" if args else Transformers(directory),
        model_args=args,
        tasks=["closing"],
        task_manager=tasks,
        batch_size=4,
    )
    samples = sorted(found["samples"]["closing"], key=lambda sample: sample["doc_id"])
    results[name] = {
        "acc": found["results"]["closing"]["acc,none"],
        "resps": [[resp[0] for resp in sample["resps"]] for sample in samples],
    }
json.dump(results, open(out, "w"))
"""
QUESTIONS = [
    ("def add(a, b):\n    return", [" a + b", " a - b", " None"], 0),
    ("import os\nprint(os.", ["getcwd())", "banana())"], 0),
    ("for i in range(10):\n", ["    print(i)", "print(i)", "    pass"], 0),
    ("class Tree:\n    def __init__(self", ["):", ", root):", "]"], 1),
    ("try:\n    x = 1\nexcept", [" ValueError:", " (", ":"], 2),
    ("x = [1, 2, 3]\nassert len(x) ==", [" 3", " 4"], 0),
    ("naïve 🙂 text", [" with", " 日本", "!"], 1),
    ("with open(path) as", [" handle:", " f:"], 1),
]


@pytest.fixture(scope="module")
def results(server, tiny, tmp_path_factory) -> dict:
    """The task's accuracy and log likelihoods: by transformers, and twice through the server."""
    folder: Path = tmp_path_factory.mktemp("lm-eval")
    data = folder / "questions.jsonl"
    rows = [{"question": q, "choices": c, "label": label} for q, c, label in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "closing.yaml").write_text(TASK.format(data=data))
    url = f"{server.url}/v1/completions"
    through = f"model=tiny,base_url={url},num_concurrent=2"
    runs = {
        "local tokenizer": f"{through},tokenizer_backend=huggingface,tokenizer={tiny}",
        "remote tokenizer": through,
    }
    out = folder / "results.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(out), str(tiny), json.dumps(runs)],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": str(folder / "hf"),
            "OPENAI_API_KEY": "none",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("way", ["local tokenizer", "remote tokenizer"])
def test_log_likelihoods_agree_with_transformers(results, way):
    for mine, theirs in zip(results[way]["resps"], results["transformers"]["resps"], strict=True):
        for (logprob, greedy), (expected, expected_greedy) in zip(mine, theirs, strict=True):
            assert float(logprob) == pytest.approx(float(expected), abs=1e-3)
            assert greedy == expected_greedy


@pytest.mark.parametrize("way", ["local tokenizer", "remote tokenizer"])
def test_the_accuracy_agrees_with_transformers(results, way):
    assert results[way]["acc"] == results["transformers"]["acc"]
