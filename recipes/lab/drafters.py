"""The drafters that share the lab model's weights, and the acceptance head of its draft model: what
is trained, with which settings, and their cards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ockham.model.checkpoint.draft_files import ACCEPTANCE_FILE, CONFIG_FILE
from ockham.training.settings import ACCEPTANCE, Settings
from ockham.training.train import train

SEED = 1
_COMMON: dict[str, Any] = {"target": "lab", "seed": SEED, "batch_tokens": 1024}
PLANS: dict[str, dict[str, Any]] = {
    "medusa": {"tokens": 700_000, "output_tokens": 150_000},
    "prompt_tokens": {"tokens": 160_000, "output_tokens": 80_000},
    "early_exit": {"tokens": 150_000, "output_tokens": 100_000, "layers": 4},
    "mtp": {"tokens": 300_000, "output_tokens": 80_000},
    "eagle3": {"tokens": 80_000, "output_tokens": 25_000},
    "acceptance": {"tokens": 200_000, "output_tokens": 80_000, "draft_model": "lab-drafter"},
}
"""What `ockham draft train lab OUT --method METHOD` is told beside the texts of texts.py."""

METHODS = tuple(PLANS)

Tell = Callable[[str], None]


def train_drafter(
    method: str, data: Path, held_out: Sequence[Path], out: Path, tell: Tell = print
) -> None:
    """Train one of `PLANS` and write it to the new directory ``out``."""
    settings = Settings(
        method=method, data=(data,), held_out=tuple(held_out), out=out, **_COMMON, **PLANS[method]
    )
    tell(json.dumps(train(settings, tell).scores, indent=2))


def install(method: str, result: Path, models: Path) -> None:
    """Put what was trained in the place of what the package carries, in the folder ``models``."""
    if method == ACCEPTANCE:
        folder = models / "lab_drafter"
        shutil.copy(result / ACCEPTANCE_FILE, folder / ACCEPTANCE_FILE)
        path = folder / "README.md"
        before = path.read_text(encoding="utf-8").partition(_ACCEPTANCE_TITLE)[0].rstrip()
        path.write_text(before + "\n" + acceptance_section(folder), encoding="utf-8")
        return
    folder = models / "lab_drafters" / method
    folder.mkdir(parents=True, exist_ok=True)
    for path in result.iterdir():
        shutil.copy(path, folder / path.name)
    described = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    (folder / "README.md").write_text(card(described), encoding="utf-8")


def card(described: Mapping[str, Any]) -> str:
    """The model card of a draft.json."""
    method, trained = str(described["method"]), described["trained"]
    title, what = _TITLES[method]
    table = _by_offset if "first_by_offset" in next(iter(trained["scores"].values())) else _chain
    return f"""---
language: [en]
base_model: lab
tags: [python, {method}, tiny]
---

# The lab model's {title}

{what}
`ockham draft train` made this; it is of no use without the lab model, whose weights it shares.

## What it foretells

Of the lab model's own tokens, decoded greedily after prompts that training never read (code and
prose of held-out files, exercises of the test split), with 95% intervals over texts.

{table(trained["scores"])}

## Training

- **Loss:** the divergence KL(lab model || drafter), over the whole vocabulary.
- **Tokens read:** {trained["tokens"]:,} in {trained["steps"]:,} steps and \
{trained["seconds"]:,.0f} seconds of one thread beside other
  work, of {trained["output_tokens"]:,} tokens that the lab model wrote (every second text greedily)
  and their prompts, which come from the text of `recipes/lab`: Python's standard library (PSF-2.0)
  and exercises.
- **Seed:** {trained["seed"]}. `python -m recipes.lab drafters` trains with these settings.
"""


_ACCEPTANCE_TITLE = "\n## Acceptance head\n"


def acceptance_section(folder: Path) -> str:
    """What the draft model's card says of the head beside it."""
    with safe_open(folder / ACCEPTANCE_FILE, "np") as file:
        trained = json.loads(file.metadata()["trained"])
    rows = [
        f"| {source} | {each['tokens']:,} | {each['accepted']:.1%} | {each['auc']:.3f} | "
        f"{each['log_loss']:.3f} | {each['log_loss_of_mean']:.3f} | "
        f"{each['calibration_error']:.3f} |"
        for source, each in trained["scores"].items()
    ]
    how = (
        f"from {trained['tokens']:,} tokens in {trained['seconds']:,.0f} seconds of one thread "
        f"beside other\nwork, seed {trained['seed']}"
    )
    return f"""{_ACCEPTANCE_TITLE}
`acceptance.safetensors` foretells whether a token of this model is the lab model's (SpecDec++,
arXiv:2405.19715). `ockham draft train --method acceptance` made it,
{how}. Of greedy text
of the lab model after held-out prompts: the share of tokens that this model foretells, the area
under the ROC curve of the head's chances, their log loss beside that of always saying the mean, and
their expected calibration error.

| held-out | tokens | foretold | area | log loss | of the mean | calibration error |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


_TITLES = {
    "medusa": (
        "Medusa heads",
        "Four heads (arXiv:2401.10774) that guess the tokens after the next one.",
    ),
    "prompt_tokens": (
        "prompt tokens",
        "Three trained inputs (arXiv:2405.18628) that make the lab model guess the tokens after "
        "the\nnext one.",
    ),
    "early_exit": (
        "early exit",
        "A correction after the first half of the lab model's layers, which then draft for the "
        "whole\n(in kind of arXiv:2502.02040).",
    ),
    "mtp": (
        "block for further tokens",
        "A layer that reads the newest token beside the lab model's hidden state, and guesses the "
        "tokens\nafter the next one (multi-token prediction, arXiv:2412.19437).",
    ),
    "eagle3": (
        "EAGLE-3 head",
        "A layer that reads three hidden states of the lab model and the newest token, and guesses "
        "the\ntokens after the next one (arXiv:2503.01840).",
    ),
}


def _by_offset(scores: Mapping[str, Mapping[str, Any]]) -> str:
    count = len(next(iter(scores.values()))["first_by_offset"])
    offsets = " | ".join(str(i + 1) for i in range(count))
    rows = [f"| held-out | tokens | | {offsets} | accepted of {count} |"]
    rows.append("|---" * (4 + count) + "|")
    for source, each in scores.items():
        first = " | ".join(f"{share:.1%}" for share in each["first_by_offset"])
        among = " | ".join(f"{share:.1%}" for share in each["among_3_by_offset"])
        accepted = _number(each["accepted"], each["accepted_interval"])
        rows.append(f"| {source} | {each['tokens']:,} | the likeliest | {first} | {accepted} |")
        rows.append(f"| | | among the 3 likeliest | {among} | |")
    return "\n".join(rows)


def _chain(scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| held-out | tokens | the likeliest | among the 3 likeliest | accepted of 4 |"]
    rows.append("|---" * 5 + "|")
    for source, each in scores.items():
        low, high = each["agreement_interval"]
        rows.append(
            f"| {source} | {each['tokens']:,} | {each['agreement']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {each['among_3']:.1%} | {_number(each['accepted'], each['accepted_interval'])} |"
        )
    return "\n".join(rows)


def _number(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.2f}" + (
        "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    )
