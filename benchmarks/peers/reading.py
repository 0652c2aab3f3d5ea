"""What the figures say, in sentences: who is ahead, and how far the targets are."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.peers.figures import BY_BANDWIDTH, MEMORY, Figures
from benchmarks.peers.peers import CONFIGURATIONS, Configuration
from benchmarks.peers.ratios import Ratio
from benchmarks.peers.returning import WARM_GOAL, warm_ratio
from benchmarks.peers.workloads import WORKLOADS, Warm

DECODE_SHARE = 0.85
PREFILL_SHARE = 0.60
BATCH_GAIN = 5.0
BATCH_LEAD = 1.5
BEYOND_BYTES = 200e6
"""The targets: of the bandwidth, of the arithmetic rate, of batch 8 over batch 1 at 4 and 8 bits,
of batch 8 over the best peer, and of memory."""

Compared = tuple[Configuration, Configuration, Ratio]


def reading(figures: Figures) -> Iterator[str]:
    """Lines of a list."""
    titles = {each.name: each.title for each in WORKLOADS} | {
        BY_BANDWIDTH: "Decode, batch 1, at the same bandwidth",
        MEMORY: "Peak memory",
    }
    for workload, title in titles.items():
        yield from _standing(title, list(figures.comparisons(workload)), figures)
    singles = []
    for workload, title in titles.items():
        values = [ratio.value for _, _, ratio in figures.comparisons(workload) if ratio.pairs == 1]
        if values:
            singles.append(
                f"{title.lower()} {min(values):.2f} to {max(values):.2f} ({len(values)})"
            )
    if singles:
        yield (
            "- Measured in a single pair, so without an interval, which decides nothing: how many "
            "times as good Ockham was, and in how many comparisons: " + "; ".join(singles) + "."
        )
    yield from _shares(figures, "decode-1", DECODE_SHARE, "the bandwidth")
    yield from _shares(figures, "prefill-512", PREFILL_SHARE, "the arithmetic rate")
    yield from _shares(figures, "prefill-2048", PREFILL_SHARE, "the arithmetic rate")
    yield from _batch(figures)
    yield from _warm(figures)
    yield from _beyond_weights(figures)


def _standing(title: str, compared: list[Compared], figures: Figures) -> Iterator[str]:
    """Ahead and behind are said only where the interval leaves no doubt. Of those ahead of Ockham
    it is said which are no farther from the real model."""
    compared = [each for each in compared if each[2].pairs > 1]
    if not compared:
        return
    ahead = [each for each in compared if each[2].low > 1]
    behind = [each for each in compared if each[2].high < 1]
    line = f"- **{title}**: Ockham is ahead in {len(ahead)} of {len(compared)} comparisons"
    if behind:
        line += f", behind in {len(behind)}: " + ", ".join(
            f"{ours.precision} of {theirs.title} ({ratio.value:.2f}"
            f"{_closer(figures, ours, theirs)})"
            for ours, theirs, ratio in sorted(behind, key=lambda each: each[2].value)
        )
    elif len(ahead) < len(compared):
        line += ", behind in none"
    undecided = len(compared) - len(ahead) - len(behind)
    line += f"; {undecided} undecided" if undecided else ""
    yield line + "."


def _closer(figures: Figures, ours: Configuration, theirs: Configuration) -> str:
    if figures.kl(ours) is None or figures.kl(theirs) is None:
        return ""
    return ", at no larger KL" if figures.no_worse(ours, theirs) else ", at a larger KL"


def _shares(figures: Figures, workload: str, target: float, of: str) -> Iterator[str]:
    shares = []
    for each in _ours(figures, workload):
        share = figures.limit_share(workload, each)
        if share is not None:
            shares.append(f"{each.precision} {share:.0%}{'' if share >= target else ' (missed)'}")
    if shares:
        title = next(each.title for each in WORKLOADS if each.name == workload)
        yield f"- Target for {title.lower()}, {target:.0%} of {of}: {', '.join(shares)}."


def _batch(figures: Figures) -> Iterator[str]:
    gains, leads = [], []
    for each in _ours(figures, "decode-8"):
        if each.bits <= 8 and each in _ours(figures, "decode-1"):
            gain = figures.median("decode-8", each) / figures.median("decode-1", each)
            missed = "" if gain >= BATCH_GAIN else " (missed)"
            gains.append(f"{each.precision} {gain:.1f}{missed}")
        against = [
            ratio for ours, _, ratio in figures.comparisons("decode-8") if ours.name == each.name
        ]
        if against:
            least = min(ratio.value for ratio in against)
            missed = "" if least >= BATCH_LEAD else " (missed)"
            leads.append(f"{each.precision} {least:.2f}{missed}")
    if gains:
        yield f"- Target for batch 8, {BATCH_GAIN:g} times batch 1: {', '.join(gains)}."
    if leads:
        yield f"- Target for batch 8, {BATCH_LEAD:g} times the best peer: {', '.join(leads)}."


def _warm(figures: Figures) -> Iterator[str]:
    workload = next(each for each in WORKLOADS if isinstance(each, Warm))
    for each in _ours(figures, workload.name):
        ratio = warm_ratio(figures, workload, each)
        yield (
            f"- Target for the first token after a warm system prompt, at most {WARM_GOAL:g} times "
            f"the wait of the new tokens alone: {each.precision} {ratio}"
            f"{'' if ratio.value <= WARM_GOAL else ' (missed)'}."
        )


def _beyond_weights(figures: Figures) -> Iterator[str]:
    beyond = []
    for each in _ours(figures, MEMORY):
        if each.name in figures.weight_bytes:
            nbytes = figures.highest(MEMORY, each) - figures.weight_bytes[each.name]
            missed = "" if nbytes <= BEYOND_BYTES else " (missed, unless by the state)"
            beyond.append(f"{each.precision} {nbytes / 1e6:.0f} MB{missed}")
    if beyond:
        yield (
            f"- Target for peak memory, {BEYOND_BYTES / 1e6:.0f} MB beyond weights and state; "
            f"measured beyond the weights, with the state: {', '.join(beyond)}."
        )


def _ours(figures: Figures, workload: str) -> list[Configuration]:
    measured = {each.name for bits in (4, 8, 16) for each in figures.configurations(workload, bits)}
    return [each for each in CONFIGURATIONS if each.is_ockham and each.name in measured]
