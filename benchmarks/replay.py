"""The same requests through two trees of Ockham: do both give the same bytes?

`python -m benchmarks.replay OLD NEW`, each a checkout with its compiled core beside the sources,
runs every configuration of `CONFIGURATIONS` in a process of its own on the built-in model, and
compares what each request was answered: tokens, texts, reasons of ending, log probabilities to the
bit. It is for changes that must change nothing. Only Ockham's public names are used, and drafting
does not adapt to time, so that a difference is the code's. The exit status is 1 if there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED = 7
REQUESTS = 20
TEXTS = (
    "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    result = 0\n"
    "    for i in range(b):\n        result = add(result, a)\n    return result\n",
    "The quick brown fox. ",
    "Q: 3 + 4 = ?\nA:",
    "x = [1, 2, 3]\nfor v in x:\n    print(v)\n",
    "a b c d e f g " * 8,
)


def _drafting(**settings: Any) -> dict[str, Any]:
    return {"speculative_config": json.dumps({**settings, "adaptive": False})}


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "small steps": {"max_num_batched_tokens": 16, "max_num_seqs": 3},
    "int4": {"quantization": "int4"},
    "int8": {"quantization": "int8"},
    "chunk": {"reuse": "prefix,chunk"},
    "edit": {"reuse": "prefix,edit"},
    **{
        method: _drafting(method=method)
        for method in ("copying", "trie", "recycling", "trigram", "grammar", "rapid")
    },
    "draft_model": _drafting(method="draft_model", model="lab-drafter"),
    **{
        model: _drafting(model=model)
        for model in ("lab-medusa", "lab-prompt-tokens", "lab-early-exit", "lab-mtp", "lab-eagle3")
    },
}


def _sampling(number: int) -> Any:
    """The parameters of request `number`: each of ten kinds in turn."""
    from ockham import SamplingParams, StructuredOutputsParams

    pattern = StructuredOutputsParams(regex="[a-z]{3,12}( [0-9]{1,3}){2}")
    kinds: tuple[dict[str, Any], ...] = (
        {"temperature": 0, "max_tokens": 40},
        {"temperature": 0.9, "max_tokens": 30},
        {"temperature": 0.8, "n": 3, "max_tokens": 16},
        {"top_p": 0.8, "top_k": 20, "min_p": 0.02, "max_tokens": 24, "logprobs": 2},
        {"repetition_penalty": 1.2, "presence_penalty": 0.4, "max_tokens": 24},
        {"temperature": 0, "max_tokens": 24, "structured_outputs": pattern},
        {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 2},
        {"bad_words": ["return", "def"], "min_tokens": 5, "max_tokens": 20},
        {"temperature": 0, "n": 2, "max_tokens": 16, "superposed": True},
        {"logit_bias": {65: 3.0}, "stop": ["\n\n"], "max_tokens": 20},
    )
    return SamplingParams(**kinds[number % len(kinds)], seed=1000 + number)


def _scored(positions: Any) -> list[Any]:
    return [
        None if entry is None else sorted((token, at.logprob) for token, at in entry.items())
        for entry in positions or []
    ]


def answers(name: str) -> Iterator[str]:
    """What each request of a configuration is answered, by the tree that is imported."""
    from ockham import LLM

    settings = CONFIGURATIONS[name]
    rng = random.Random(SEED)
    prompts = [rng.choice(TEXTS) + str(number % 4) for number in range(REQUESTS)]
    params = [_sampling(number) for number in range(REQUESTS)]
    asked: dict[str, Any] = {}
    rounds = [prompts]
    if "," in settings.get("reuse", ""):  # asked for by name, of texts that came before
        asked = {"reuse": name}
        params = [each for each in params if each.n == 1 and each.prompt_logprobs is None]
        prompts = prompts[: len(params)]
        rounds = [prompts, [prompt + " and more" for prompt in prompts]]
    with LLM("lab", max_model_len=1024, kv_cache_memory_bytes=32 << 20, **settings) as llm:
        for each in rounds:
            for output in llm.generate(each, params, use_tqdm=False, **asked):
                yield repr(
                    [
                        *((c.token_ids, c.text, c.finish_reason) for c in output.outputs),
                        *((c.stop_reason, c.cumulative_logprob) for c in output.outputs),
                        *(_scored(choice.logprobs) for choice in output.outputs),
                        _scored(output.prompt_logprobs),
                    ]
                )


def _digests(tree: Path, name: str) -> list[str]:
    """A digest of each answer. Raises CalledProcessError if the tree cannot run it."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--answers", name],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=True,
        capture_output=True,
        text=True,
    )
    origin, *digests = done.stdout.split()
    assert Path(origin) == tree / "ockham" / "__init__.py", f"{origin} was imported, not {tree}"
    return digests


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--answers"]:
        import ockham

        print(ockham.__file__)
        for answer in answers(arguments[1]):
            print(hashlib.sha256(answer.encode()).hexdigest())
        return 0
    if len(arguments) != 2:
        print("give two checkouts: python -m benchmarks.replay OLD NEW", file=sys.stderr)
        return 2
    old, new = (Path(argument).resolve() for argument in arguments)
    total = differing = 0
    for name in CONFIGURATIONS:
        pairs = list(zip(_digests(old, name), _digests(new, name), strict=True))
        wrong = [number for number, (one, other) in enumerate(pairs) if one != other]
        print(f"{name}: {len(pairs)} requests, differing: {wrong or 'none'}", flush=True)
        total, differing = total + len(pairs), differing + len(wrong)
    print(f"{total} requests, {differing} with other bytes")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
