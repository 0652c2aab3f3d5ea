"""Training a reward model: a copy of a model that says whether what was written is right so far.

The model answers items of a task. At the end of each line of its texts the copy learns whether the
text is right so far: whether it turned out right, or begins as the item's own answer does (process
supervision, Lightman et al. 2023, arXiv:2305.20050, with labels that a program knows). What is
written is a sequence classifier with one output, as transformers reads it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.probing import HELD_OUT, area_under_curve, probe_settings
from ockham.lab.running import drive
from ockham.lab.tasks import TASKS, Item, items
from ockham.model.files.safetensors import write_floats
from ockham.model.hub import resolve
from ockham.model.rewriting.model import RewrittenModel
from ockham.training.checkpoints import open_plain
from ockham.training.extra import require_extra

CAUSAL, CLASSIFIES = "ForCausalLM", "ForSequenceClassification"
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
BATCH_TEXTS = 8
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """`target` answers `samples` times each of `problems` items of `task`, with the adapter `lora`
    if there is one. Its copy reads each text `epochs` times, at the learning rate `rate`."""

    target: str
    out: Path
    task: str = "steps"
    lora: str | None = None
    problems: int = 140
    samples: int = 8
    temperature: float = 1.0
    epochs: int = 2
    rate: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}.")
        if not 0.0 < self.rate < 10.0:
            raise ConfigError(f"rate must be positive and below 10, got {self.rate}.")
        if (self.out / "config.json").exists():
            raise ConfigError(f"{self.out} holds a model already; name another directory.")


@dataclass(frozen=True, slots=True)
class Judged:
    """A text of one problem: its tokens, with the prompt's, and at which of them what was written
    is right (1) or not (0). The last is the end of the whole."""

    problem: int
    tokens: list[int]
    places: list[int]
    labels: list[float]
    right: float


def train_reward(settings: RewardSettings, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Train a reward model and write it to `settings.out`. Gives the areas under the ROC curve, on
    problems that it did not learn from: of the ends of lines by whether the text is right so far,
    of whole texts by whether they are right, and the same between texts of one problem.

    Raises ConfigError for settings that cannot be, and where all texts are right, or all are wrong.
    """
    require_extra()
    began = time.monotonic()
    path = resolve(settings.target)
    opened = open_plain(path, "the model to train")
    try:
        model = RewrittenModel(opened, tell)
        config = _classifier(model.config)
        texts = _written(settings, tell)
        learned = [text for text in texts if text.problem % HELD_OUT]
        judged = [text for text in texts if text.problem % HELD_OUT == 0]
        if len({text.right for text in learned}) < 2:
            raise ConfigError(
                "all texts are right, or all are wrong: there is nothing to tell apart; choose "
                "other items, or another temperature."
            )
        tensors, scores = _trained(settings, model, learned, judged, tell)
    finally:
        opened.source.close()
    settings.out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (path / name).exists():
            (settings.out / name).write_bytes((path / name).read_bytes())
    write_floats(settings.out / "model.safetensors", tensors)
    (settings.out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return {
        **scores,
        "texts": len(learned),
        "held_out": len(judged),
        "right": round(float(np.mean([text.right for text in judged])), 3),
        "seconds": round(time.monotonic() - began, 1),
    }


def labelled(item: Item, said: str, right: float) -> Iterator[tuple[int, float]]:
    """Where lines of a text end, in characters, and whether it is right by then."""
    at = 0
    while at < len(said):
        at = said.find("\n", at) + 1 or len(said)
        agrees = item.answer.startswith(said[:at].rstrip())
        yield at, float(right == 1.0 or agrees)


def _classifier(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a classifier of the same family. Raises ConfigError for others."""
    (architecture,) = config.get("architectures") or [""]
    family = architecture.removesuffix(CAUSAL)
    if family not in FAMILIES or not architecture.endswith(CAUSAL):
        raise ConfigError(
            f"a reward model is trained of {', '.join(FAMILIES)}, and not of {architecture}."
        )
    changed = {"architectures": [f"{family}{CLASSIFIES}"], "torch_dtype": "float32"}
    return {**config, **changed, "id2label": {"0": "right"}, "label2id": {"right": 0}}


def _written(settings: RewardSettings, tell: Tell) -> list[Judged]:
    """Texts of the model, read as `engine.rewards` reads them: prompt and text as one."""
    config, adapter = probe_settings(settings.target, settings.lora)
    engine = Engine(config)
    try:
        tokenizer = engine.tokenizer
        if tokenizer is None:
            raise ConfigError("answers are read from text: a model with a tokenizer is needed.")
        asks: dict[str, Any] = make_asks({"adapter/lora": adapter}) if adapter else {}
        drawn = [
            item
            for item in items(settings.task, settings.seed, settings.problems, "train")
            if item.text is None
        ]
        if not drawn:
            raise ConfigError(f"the items of {settings.task!r} have no right answers.")
        texts: list[Judged] = []

        def done(output: RequestOutput) -> None:
            number = int(output.request_id)
            said = output.outputs[0].text
            problem = number // settings.samples
            item = drawn[problem]
            right = TASKS[item.task].score(item, said)
            before = tokenizer.decode(list(output.prompt_token_ids))
            tokens = tokenizer.encode(before + said, add_special_tokens=True)
            places, labels = [], []
            for at, label in labelled(item, said, right):
                # Where the end of a line is another token in the whole text, it is not learned.
                part = tokenizer.encode(before + said[:at], add_special_tokens=True)
                if part == tokens[: len(part)]:
                    places.append(len(part) - 1)
                    labels.append(label)
            if places:
                texts.append(Judged(problem, tokens, places, labels, right))
            if len(texts) % 100 == 0:
                tell(f"{len(texts)} of {len(drawn) * settings.samples} texts are written")

        wanted = []
        for number in range(len(drawn) * settings.samples):
            item = drawn[number // settings.samples]
            asked = tokenizer.apply_chat_template(item.messages)
            wanted.append(
                Request(
                    request_id=str(number),
                    prompt_token_ids=tokenizer.encode(asked, add_special_tokens=False),
                    params=SamplingParams(
                        temperature=settings.temperature,
                        seed=settings.seed + number,
                        max_tokens=item.max_tokens,
                    ),
                    asks=dict(asks),
                )
            )
        drive(engine, wanted, done)
    finally:
        engine.close()
    return sorted(texts, key=lambda text: (text.problem, text.tokens))


def _trained(
    settings: RewardSettings,
    model: RewrittenModel,
    learned: Sequence[Judged],
    judged: Sequence[Judged],
    tell: Tell,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the classifier, and how well it judges."""
    import torch
    from torch.nn import functional as F

    from ockham.training.decoder import Decoder
    from ockham.training.target import fast

    torch.manual_seed(settings.seed)
    decoder = Decoder(model)
    score = torch.nn.Parameter(torch.zeros(1, model.hidden_size))
    learnable = [*decoder.parameters(), score]
    optimiser = torch.optim.AdamW(learnable, lr=settings.rate, weight_decay=0.01)

    def logits(texts: Sequence[Judged]) -> Any:
        """Of all places of the texts, in order."""
        longest = max(len(text.tokens) for text in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text.tokens)] = torch.tensor(text.tokens)
        with fast():
            states = decoder(ids, head=False).float()
        rows = [row for row, text in enumerate(texts) for _ in text.places]
        places = [place for text in texts for place in text.places]
        return F.linear(states[rows, places], score)[:, 0]

    rng = np.random.default_rng(settings.seed)
    steps = settings.epochs * -(-len(learned) // BATCH_TEXTS)
    losses: list[float] = []
    began = told = time.monotonic()
    for epoch in range(settings.epochs):
        order = rng.permutation(len(learned))
        for start in range(0, len(learned), BATCH_TEXTS):
            batch = [learned[n] for n in order[start : start + BATCH_TEXTS]]
            rate = min(1.0, (len(losses) + 1) / 20, 2 * (1 - len(losses) / steps))
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * rate
            labels = torch.tensor([label for text in batch for label in text.labels])
            loss = F.binary_cross_entropy_with_logits(logits(batch), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learnable, 1.0)
            optimiser.step()
            losses.append(loss.item())
            if time.monotonic() - told > 10.0:
                told = time.monotonic()
                left = (told - began) / len(losses) * (steps - len(losses)) / 60
                tell(
                    f"step {len(losses)} of {steps}, epoch {epoch + 1}: loss "
                    f"{float(np.mean(losses[-20:])):.3f}, {left:.1f} minutes left"
                )
    with torch.no_grad():
        found = [logits([text]).numpy() for text in judged]
    head = getattr(model, "head", None)
    tensors = {name: values for name, values in decoder.values().items() if name != head}
    if model.table == head:
        tensors[model.table] = decoder.values()[model.table]
    tensors["score.weight"] = score.detach().numpy()
    return tensors, _worth(judged, found)


def _worth(judged: Sequence[Judged], found: Sequence[Any]) -> dict[str, Any]:
    """Areas under the ROC curve."""
    lines = np.concatenate(found)
    labels = np.concatenate([text.labels for text in judged]) == 1.0
    last, rights = np.array([each[-1] for each in found]), np.array([t.right for t in judged]) == 1
    problems = np.array([text.problem for text in judged])
    within = [
        area_under_curve(last[problems == each], rights[problems == each])
        for each in np.unique(problems)
    ]
    known = [area for area in within if not np.isnan(area)]
    return {
        "area_of_lines": round(area_under_curve(lines, labels), 3),
        "area_of_texts": round(area_under_curve(last, rights), 3),
        "area_within_problems": round(float(np.mean(known)), 3) if known else None,
    }
