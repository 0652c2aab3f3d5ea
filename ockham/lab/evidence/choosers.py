"""Evidence for patterns whose queries choose what they read: long contexts, and codebooks."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.ledger import Ledger
from ockham.core.registry import find, make, make_ask
from ockham.core.seams import AttentionGroup, Calibrated
from ockham.core.step import Step
from ockham.engine.visiting import put_choices
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.patterns import (
    FFD,
    HEAD_DIM,
    HEADS,
    QUEST,
    attention_of,
    chosen,
)
from ockham.lab.evidence.recipe import OF_NO_MODEL, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.head_samples import HeadSamples
from ockham.lab.tasks import TASKS
from ockham.model.checkpoint.codebook_files import BOOK_SIZE, Codebooks, packed_codebooks

LSERVE = (
    "LServe (paper 352, arXiv:2502.14866): a choice of pages is used for 4 tokens; with streaming "
    "heads, decoding 1.3 to 2.1 times as fast as vLLM"
)
A2ATS = (
    "A2ATS (paper 179), of 4,096 centroids a head and the state in another memory: up to 2.7 times "
    "the throughput at long contexts"
)
EVERY = 4
KEYS, LONGER, KV_HEADS, MANY_KV_HEADS, LAYERS = 16384, 32768, 4, 8, 4
DECODED = 16
CHOSEN_BY = "bytes read to choose"
CHOSEN_SHARE = 0.1
"""Of the keys that each query reads, where nothing but time is measured."""
LONG = "The same on random keys and values, at 16,384 tokens: the time of attention alone."
LONGER_ROW = (
    "One choice for each token against one for four, on random keys and values, at 32,768 tokens: "
    "the time of attention alone."
)
BOOK_TEXTS = 12


@evidence("pattern", "quest-long", LONG, OF_NO_MODEL)
def quest_long(bench: Bench) -> Row:
    """Decodes that read a tenth of the keys, through layers of nothing but attention."""
    return _long(bench, "quest", QUEST)


@evidence("pattern", "scan-long", LONG, OF_NO_MODEL)
def scan_long(bench: Bench) -> Row:
    """Decodes that scan all keys and read a tenth of them, through layers of nothing but
    attention."""
    return _long(bench, "scan", FFD)


@evidence("pattern", "a2ats-long", LONG, OF_NO_MODEL)
def a2ats_long(bench: Bench) -> Row:
    """Decodes that look all keys up and read a tenth of them, through layers of nothing but
    attention."""
    return _long(bench, "a2ats", A2ATS)


@evidence("pattern", "quest-every-long", LONGER_ROW, OF_NO_MODEL)
def quest_every_long(bench: Bench) -> Row:
    """Decodes of which each chooses, against one in four."""
    return _every_long(bench, "quest")


@evidence("pattern", "scan-every-long", LONGER_ROW, OF_NO_MODEL)
def scan_every_long(bench: Bench) -> Row:
    """Decodes of which each scans all keys, against one in four."""
    return _every_long(bench, "scan")


@evidence(
    "pattern",
    "quest-every",
    "The same where one token in four chooses, and those after it read the same blocks.",
)
def quest_every(bench: Bench) -> Row:
    """One key's word among hundreds, of which one query in four chooses six blocks for all."""
    return chosen(bench, "quest", LSERVE, EVERY)


@evidence("pattern", "a2ats")
def a2ats(bench: Bench) -> Row:
    """One key's word among hundreds, of which each query reads six blocks, with a codebook that is
    fitted to other lists."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "codebook"
        file.write_bytes(_codebook(bench))
        engine = bench.engine(attention_pattern=f"a2ats:codebook={file}")
        return chosen(bench, "a2ats", A2ATS, engine=engine)


def _codebook(bench: Bench) -> bytes:
    """A codebook of the model's keys, of lists that no question is asked about."""
    engine = bench.engine()
    assert engine.tokenizer is not None, "its questions are texts"
    texts, level = [], bench.suite.needle_levels[-1]
    for number in range(BOOK_TEXTS):
        item = TASKS[bench.suite.needles].item(bench.seed + 1, number, "train", level)
        text = engine.tokenizer.apply_chat_template([dict(message) for message in item.messages])
        texts.append(engine.tokenizer.encode(text, add_special_tokens=False))
    technique: Calibrated = make("pattern", "a2ats")
    found = technique.calibration()
    samples = HeadSamples(engine.config.model, max(map(len, texts)), bench.config.threads)
    try:
        samples.show(texts, found)
    finally:
        samples.close()
    return found.result({})


def _long(bench: Bench, name: str, claim: str) -> Row:
    decodes = _Decodes(bench, _technique(name), KEYS, KV_HEADS)
    what = (
        f"{decodes.what}; {CHOSEN_SHARE:.0%} of the keys are read, whatever they hold, and what "
        "the choice of them takes is in the time"
    )
    return decodes.compare(f"{name}-long", 0, 1, what, "keys looked at", claim)


def _every_long(bench: Bench, name: str) -> Row:
    decodes = _Decodes(bench, _technique(name), LONGER, MANY_KV_HEADS)
    what = (
        f"{decodes.what}; {CHOSEN_SHARE:.0%} of the keys are read, whatever they hold; each "
        f"chooses, against one in {EVERY}"
    )
    return decodes.compare(f"{name}-every-long", 1, EVERY, what, CHOSEN_BY, LSERVE)


def _technique(name: str) -> Any:
    """The pattern, with a codebook of random keys if it needs one."""
    if not hasattr(find("pattern", name).cls, "codebooks"):
        return make("pattern", name)
    shape = (LAYERS, KV_HEADS, BOOK_SIZE, HEAD_DIM)
    centroids = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    metrics = np.broadcast_to(np.eye(HEAD_DIM, dtype=np.float32), (*shape[:2], HEAD_DIM, HEAD_DIM))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "codebook"
        file.write_bytes(packed_codebooks(Codebooks(tuple(range(LAYERS)), centroids, metrics), {}))
        return make("pattern", f"{name}:codebook={file}")


class _Decodes:
    """Decodes at the end of a context through layers of nothing but attention, which choose at one
    token in so many (0: at none, and they read all)."""

    def __init__(self, bench: Bench, technique: Any, keys: int, kv_heads: int) -> None:
        from ockham.lab.kernels.steps import step_over

        self._bench, self._unit = bench, ""
        self._total = LAYERS * kv_heads * (DECODED * keys - sum(range(DECODED)))
        self.what = (
            f"{LAYERS} layers of attention alone, {HEADS} query heads over {kv_heads}, random keys "
            f"and values of {keys} tokens: {DECODED} decodes"
        )
        groups = [AttentionGroup(tuple(range(LAYERS)), kv_heads, None)]
        codebooks = getattr(technique, "codebooks", None)
        [books] = [None] if codebooks is None else codebooks(groups)
        self._executor = attention_of(bench, keys, HEADS, kv_heads, HEAD_DIM, LAYERS, books)
        self._steps: dict[int, list[Step]] = {}
        for every in (0, 1, EVERY):
            steps = [step_over(1, 1, keys - i) for i in reversed(range(DECODED))]
            numbers = {"tokens": 0, "share": CHOSEN_SHARE, "dense_layers": 0, "first": 0}
            ask = make_ask(f"pattern/{technique.name}", {**numbers, "every": max(1, every)})
            for step in steps if every else ():
                put_choices(step, [(technique.open(ask, groups), slice(0, 1), 0)])
            self._steps[every] = steps

    def compare(
        self, label: str, without: int, with_: int, what: str, unit: str, claim: str
    ) -> Row:
        """The decodes that choose at one token in `without`, against one in `with_`."""
        self._unit = unit
        self._run(1)  # makes what is kept beside the keys
        row = self._bench.compare(
            "pattern",
            label,
            lambda: self._run(without),
            lambda: self._run(with_),
            lambda outcome: outcome.observed,
            exact=False,
            what=what,
            unit=unit,
            claim=claim,
        )
        row.identical = None
        return row

    def _run(self, every: int) -> Outcome:
        seconds, left, nbytes = 0.0, 0, 0
        for step in self._steps[every]:
            under_way = self._executor.begin(step)
            self._executor.run(under_way, 0, 2)
            for place in [2 + 2 * layer for layer in range(LAYERS)]:
                started = time.perf_counter()
                self._executor.run(under_way, place, place + 1)
                seconds += time.perf_counter() - started
            left_out = self._executor.finish(under_way).left_out
            left += sum(int(of_rows[0].sum()) for of_rows in left_out.values())
            nbytes += sum(int(of_rows[1].sum()) for of_rows in left_out.values())
        counted = nbytes if self._unit == CHOSEN_BY else self._total - left
        return Outcome([], Ledger(), seconds, float(counted))
