"""Answers that can be foretold in part: the prompts, and the part of the page of results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.peers.figures import Figures
from benchmarks.peers.peers import PEERS, Configuration
from benchmarks.peers.ratios import Ratio, paired_ratio
from benchmarks.peers.workloads import RETURNING_BITS, WORKLOADS, Drafts
from ockham.core.config import EngineConfig
from ockham.lab.streams import make_streams
from ockham.model.hub import resolve
from ockham.text.tokenizer import load_tokenizer

INTRODUCTION = """\
Prompts of `ockham bench speculation`, continued greedily by a checkpoint of TinyLlama's size that
says what Ockham's built-in model says (`answering.py`), so that drafts are accepted as they are in
text. One prompt after the other, each without drafts and with them, in turn; the rate is that of
the tokens after the first ones. The gain is each engine's over itself, of the same prompts. Of an
engine with several settings, the better one in each round counts. Who drafts how:
"""


def foretold(workload: Drafts, seed: int) -> list[tuple[list[int], int]]:
    """Prompts, and how long their answers are expected to be."""
    tokenizer = load_tokenizer(EngineConfig(), resolve("lab"))
    assert tokenizer is not None, "the built-in model has a tokenizer"
    # Of some kinds the texts do not depend on the seed: each round has those after the last one's.
    count = workload.prompts
    streams = make_streams(workload.kind, tokenizer, seed, count * (seed + 1))
    return [(stream.tokens[: stream.prompt], stream.answered) for stream in streams[-count:]]


def gain(figures: Figures, workload: Drafts, each: Configuration) -> Ratio:
    """The rate with drafts over that without them, of pairs from the same rounds."""
    samples = figures.samples(workload.name, each)
    return paired_ratio([(sample.value, _plain(sample.plain)) for sample in samples])


def section(figures: Figures) -> Iterator[str]:
    """Nothing where none of it was measured."""
    found = [
        each
        for each in WORKLOADS
        if isinstance(each, Drafts) and figures.configurations(each.name, RETURNING_BITS)
    ]
    if not found:
        return
    yield "## Drafts without a second model\n"
    yield INTRODUCTION
    drafting = [each for each in PEERS.values() if each.drafts]
    yield "; ".join(f"{peer.title}, {peer.drafts_by}" for peer in drafting) + ".\n"
    for each in found:
        yield f"### {each.title}\n"
        yield from _table(figures, each)


def _table(figures: Figures, workload: Drafts) -> Iterator[str]:
    rows = figures.configurations(workload.name, RETURNING_BITS)
    ours = next((each for each in rows if each.is_ockham), None)
    yield "| 8 bits | tokens/s without drafts | with | gain | Ockham / it, with drafts |"
    yield "|---|---|---|---|---|"
    for each in sorted(rows, key=lambda row: -figures.median(workload.name, row)):
        samples = figures.samples(workload.name, each)
        plain = statistics.median(_plain(sample.plain) for sample in samples)
        cells = [each.title, f"{plain:.1f}", f"{figures.median(workload.name, each):.1f}"]
        cells.append(str(gain(figures, workload, each)))
        ratio = None if ours is None else figures.ratio(workload.name, ours, each)
        cells.append("1" if each is ours else "no pair" if ratio is None else str(ratio))
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _plain(rate: float | None) -> float:
    assert rate is not None, "these workloads record the rate without drafts"
    return rate
