"""What the cards of the lab model's siblings say is measured again on small samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ockham import LLM, SamplingParams
from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from ockham.lab.cases import data_cases, task_cases
from ockham.lab.evaluate import Result, evaluate, summarise
from ockham.lab.statistics import ratio_interval, wilson
from ockham.lab.tasks import items
from ockham.model.converting import convert
from ockham.model.hub import ADAPTERS, BUILT_IN, resolve_adapter
from ockham.model.rewriting.applying import Rewriting
from recipes.lab.sentences import write_items

pytestmark = pytest.mark.skipif(core is None, reason="the reference backend is too slow")

SEED = 7
"""Not that of the cards: other items."""
CACHE_BYTES = 256 << 20
PASSAGES, PASSAGE_TOKENS = 24, 300


def stated(card: Path, row: str) -> tuple[float, float]:
    """The interval of the last percentages in the row that begins so."""
    found = [line for line in card.read_text().splitlines() if line.startswith(row)]
    assert len(found) == 1, f"{card} has {len(found)} rows {row!r}"
    low, high = re.findall(r"([\d.]+)% to ([\d.]+)%", found[0])[-1]
    return float(low) / 100, float(high) / 100


def measured(model: str, task: str, level: str | None, number: int) -> tuple[float, float]:
    """The interval of a task's score, of all its levels where none is named."""
    engine = Engine(EngineConfig(model=model, kv_cache_memory_bytes=CACHE_BYTES))
    assert engine.tokenizer is not None
    if task == "sentences":
        path = Path(model) / "items.jsonl"
        write_items(path, number, SEED)
        cases = data_cases(path, engine.tokenizer, engine.max_model_len, 24).cases
        cases = [case for case in cases if case.level == level]
    else:
        cases = task_cases(
            [task], number, SEED, [level] if level else [], engine.tokenizer, engine.max_model_len
        ).cases
    results: list[Result] = []
    evaluate(engine, cases, results.append)
    interval = summarise(results, SEED)[0].score_interval
    assert interval is not None
    return interval


def assert_overlap(one: tuple[float, float], other: tuple[float, float]) -> None:
    assert one[0] <= other[1], f"{one} and {other}"
    assert other[0] <= one[1], f"{one} and {other}"


def test_the_drafter_agrees_with_the_lab_model_as_its_card_says() -> None:
    texts = [item.text for item in items("code", SEED, PASSAGES)]
    chosen: list[list[list[int]]] = []
    params = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=1)
    for model in ("lab", "lab-drafter"):
        llm = LLM(model, kv_cache_memory_bytes=CACHE_BYTES)
        prompts = [llm.get_tokenizer().encode(text or "")[:PASSAGE_TOKENS] for text in texts]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        chosen.append(
            [
                [
                    next(t for t, each in row.items() if each.rank == 1)
                    for row in out.prompt_logprobs[1:]
                ]
                for out in outputs
            ]
        )
    same = [sum(a == b for a, b in zip(*rows, strict=True)) for rows in zip(*chosen, strict=True)]
    interval = ratio_interval(same, [PASSAGE_TOKENS - 1] * len(same))
    assert interval is not None
    card = (BUILT_IN["lab-drafter"] / "README.md").read_text()
    found = re.search(r"^\| code \| [\d.]+% \(([\d.]+)% to ([\d.]+)%\)", card, re.MULTILINE)
    assert found is not None
    assert_overlap(interval, (float(found[1]) / 100, float(found[2]) / 100))


@pytest.mark.parametrize(("task", "level"), [("recall", "tokens=256"), ("chat", "turns=4")])
def test_the_mixture_scores_as_its_card_says(task: str, level: str) -> None:
    card = stated(BUILT_IN["lab-moe"] / "README.md", f"| {task} | {level} |")
    assert_overlap(measured("lab-moe", task, level, 24), card)


def test_the_recursive_model_scores_as_its_card_says() -> None:
    card = stated(BUILT_IN["lab-recursive"] / "README.md", "| documents | documents=4 |")
    assert_overlap(measured("lab-recursive", "documents", "documents=4", 24), card)


@pytest.mark.parametrize(("width", "column"), [(1.0, 3), (0.5, 4)])
def test_a_nested_width_scores_as_its_card_says(tmp_path: Path, width: float, column: int) -> None:
    rows = (BUILT_IN["lab-nested"] / "README.md").read_text().splitlines()
    (row,) = (line for line in rows if line.startswith("| documents |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    items, share = int(cells[1]), float(cells[column].removesuffix("%")) / 100
    rewriting = Rewriting((f"width:{width}",))
    convert(EngineConfig(model="lab-nested"), tmp_path, lambda line: None, rewriting=rewriting)
    card = wilson(round(share * items), items)
    assert card is not None
    assert_overlap(measured(str(tmp_path), "documents", None, 24), card)


@pytest.mark.parametrize(
    ("adapter", "task", "source", "level"),
    [
        ("lab-steps", "steps", "steps", "count, items=8"),
        ("lab-sentences", "sentences", "data", "tokens=128"),
    ],
)
def test_an_adapter_changes_its_skill_as_its_card_says(
    tmp_path: Path, adapter: str, task: str, source: str, level: str
) -> None:
    out = tmp_path / "merged"
    convert(EngineConfig(), out, lambda line: None, lora=resolve_adapter(adapter))
    with_adapter = stated(ADAPTERS[adapter] / "README.md", f"| {source} | {level} |")
    assert_overlap(measured(str(out), task, level, 24), with_adapter)
