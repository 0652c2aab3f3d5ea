"""The part of the page of results about prompts that share text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.peers.figures import Figures
from benchmarks.peers.peers import PEERS, Configuration
from benchmarks.peers.ratios import Ratio, paired_ratio
from benchmarks.peers.workloads import RETURNING_BITS, WORKLOADS, Returning, Warm

WARM_GOAL = 1.15
"""The target: the wait after a warm system prompt over that of the new tokens alone."""
INTRODUCTION = """\
Ockham's own workloads (docs/workloads.md), small, as token ids: a token for each word and mark. A
chat goes on with recorded answers. Every engine is asked the same in the same order, the first
request with nothing to reuse. *Anew*: with reuse switched off. The wait is that from a request's
beginning to its first token, the median over requests and then over rounds; the rate is that of all
generated tokens until the last request ends. How the engines reuse:
"""


def sections(figures: Figures) -> Iterator[str]:
    """Nothing where none of it was measured."""
    warm = next(each for each in WORKLOADS if isinstance(each, Warm))
    kinds = [each for each in WORKLOADS if isinstance(each, Returning) and each.reuse]
    all_of_them: list[Warm | Returning] = [warm, *kinds]
    found = [each for each in all_of_them if figures.configurations(each.name, RETURNING_BITS)]
    if not found:
        return
    yield "## Prompts that share text\n"
    yield INTRODUCTION
    reusing = [each for each in PEERS.values() if each.reuses]
    yield "; ".join(f"{peer.title}, {peer.reuses}" for peer in reusing) + ".\n"
    for each in found:
        yield f"### {each.title}\n"
        yield from _warm(figures, each) if isinstance(each, Warm) else _kind(figures, each)


def warm_ratio(figures: Figures, workload: Warm, each: Configuration) -> Ratio:
    """The wait with the system prompt over that without it, of pairs from the same rounds."""
    samples = figures.samples(workload.name, each)
    return paired_ratio([(sample.value, _wait(sample.first_token_s)) for sample in samples])


def _warm(figures: Figures, workload: Warm) -> Iterator[str]:
    yield (
        f"{workload.system_tokens:,} tokens that are there already and "
        f"{workload.new_prompt_tokens} new ones, in turn with {workload.new_prompt_tokens} new "
        f"ones alone, {workload.pairs} of each a round; milliseconds to the first token.\n"
    )
    rows = figures.configurations(workload.name, RETURNING_BITS)
    ours = next((each for each in rows if each.is_ockham), None)
    yield "| 8 bits | after the system prompt | alone | the one over the other | Ockham / it |"
    yield "|---|---|---|---|---|"
    for each in sorted(rows, key=lambda row: figures.median(workload.name, row)):
        samples = figures.samples(workload.name, each)
        alone = statistics.median(_wait(sample.first_token_s) for sample in samples)
        cells = [each.title, f"{figures.median(workload.name, each) * 1e3:.0f}"]
        cells += [f"{alone * 1e3:.0f}", str(warm_ratio(figures, workload, each))]
        cells.append(_against(figures, workload.name, ours, each))
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _kind(figures: Figures, workload: Returning) -> Iterator[str]:
    rows = figures.configurations(workload.name, RETURNING_BITS)
    ours = next((each for each in rows if each.is_ockham), None)
    settings = ", ".join(f"{name}={value}" for name, value in workload.settings)
    at_once = f"{workload.at_once} at once" if workload.at_once > 1 else "one after another"
    yield f"`{workload.kind}` with {settings}; {at_once}.\n"
    yield "| 8 bits | wait | anew | tokens/s | anew | rate: Ockham / it | anew: Ockham / it |"
    yield "|---|---|---|---|---|---|---|"
    anew = next(
        each.name
        for each in WORKLOADS
        if isinstance(each, Returning) and each.kind == workload.kind and not each.reuse
    )
    without = figures.configurations(anew, RETURNING_BITS)
    for each in sorted(rows, key=lambda row: -figures.median(workload.name, row)):
        names = [workload.name, *([anew] if each in without else [])]
        waits, rates = [], []
        for name in names:
            samples = figures.samples(name, each)
            wait = statistics.median(_wait(sample.first_token_s) for sample in samples)
            waits.append(f"{wait:.2f} s")
            rates.append(f"{figures.median(name, each):.1f}")
        missing = ["not measured"] * (2 - len(names))
        cells = [each.title, *waits, *missing, *rates, *missing]
        cells += [_against(figures, name, ours, each) for name in (workload.name, anew)]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _wait(seconds: float | None) -> float:
    assert seconds is not None, "these workloads record when first tokens came"
    return seconds


def _against(
    figures: Figures, workload: str, ours: Configuration | None, each: Configuration
) -> str:
    measured = figures.configurations(workload, RETURNING_BITS)
    if ours is None or each.is_ockham:
        return "1" if each in measured else ""
    ratio = figures.ratio(workload, ours, each) if {ours, each} <= set(measured) else None
    return "no pair" if ratio is None else str(ratio)
