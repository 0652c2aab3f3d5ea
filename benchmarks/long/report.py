"""benchmarks/RESULTS-long.md from the records of runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.long.configurations import (
    KINDS,
    OPENVINO,
    STEP_TOKENS,
    Configuration,
    configurations,
    trishape_share,
)
from benchmarks.long.workloads import WORKLOADS, Workload
from benchmarks.peers.peers import OCKHAM, PEERS
from benchmarks.peers.ratios import Ratio, paired_ratio
from benchmarks.peers.results import DISTURBED_SHARE, Record

METHOD = """\
Both engines have the same weights in int8, each in its own format, and keys and values in 8 bits
where nothing else is said; both read a prompt {step} tokens a step, with {threads} threads, one
request at a time, greedily, and no token ends an answer. OpenVINO GenAI runs in its
`ContinuousBatchingPipeline`, which is what evicts and reads sparsely. In a round every
configuration reads the same prompt, one right after the other, in rotating order; the next round
has another prompt. *First token*: seconds from the request to its first token at the caller. *A
token*: milliseconds of a later one, the median of those from the third on. *All*: seconds to the
last token; a rule that drops tokens does so before the second one. Medians of the rounds, the
lowest and the highest in brackets. *Over plain*: how many times as fast as the same engine's first
row. Ratios of the engines are of pairs of the same round: the geometric mean, a 95% interval
(Student's, of the logarithms) and the number of pairs; above 1, Ockham is faster.

*Pairs read*: the share of the pairs of a query and a key that attention in the prompt computed.
Ockham's is from its ledger, and counts what the choice itself took. OpenVINO tells none:
TRISHAPE's follows from its rule, XATTENTION's is not known. *As plain*: how many of the {new}
tokens, from the first on, are those of the same engine's plain row, the mean of the rounds.
"""
DISTURBED = """\
Others used the machine beside these runs, so that seconds and milliseconds are the processor's:
what all threads of the engine's process used.
"""
SMOLLM2 = """\
SmolLM2-135M-Instruct (30 layers, 9 heads, 3 key-value heads), on documentation in which five facts
are hidden; the prompt ends with a question about one of them. *Right*: answers that name the word.
"""
RANDOM = """\
The random checkpoint in the shape of TinyLlama (1.1B, 22 layers, 32 heads, 4 key-value heads), on
random tokens. Its attention is near-uniform, so that a choice by attention says nothing of a real
model's: {share:.0%} of the blocks are imposed on Ockham, and OpenVINO, which has a threshold
alone, has that number as its threshold. Times are those of real weights.
"""


def report(records: Sequence[Record]) -> str:
    """The whole page. Raises ValueError where nothing has been measured."""
    found = [each for each in records if each["kind"] == "run"]
    if not found:
        raise ValueError("there are no results; `python -m benchmarks.long run` first.")
    timed = {workload.name for workload in WORKLOADS if workload.timed}
    disturbed = any(
        each["others_share"] > DISTURBED_SHARE for each in found if each["workload"] in timed
    )
    clock = "processor" if disturbed else "wall"
    runs = [each | each[clock] for each in found]
    session = [each for each in records if each["kind"] == "session"][-1]
    parts = ["# Long prompts beside OpenVINO GenAI\n", *_machine(records, runs)]
    for workload in WORKLOADS:
        if mine := [each for each in runs if each["workload"] == workload.name]:
            parts += _section(workload, mine)
    parts += ["## How it was measured\n"]
    new = max(each.new_tokens for each in WORKLOADS)
    parts.append(METHOD.format(step=STEP_TOKENS, threads=session["threads"], new=new))
    if disturbed:
        parts.append(DISTURBED)
    parts += [
        f"- {each['configuration']} on {each['workload']} is missing: {each['reason']}\n"
        for each in records
        if each["kind"] == "failure"
    ]
    return "\n".join(parts).rstrip() + "\n"


def _machine(records: Sequence[Record], runs: Sequence[Record]) -> Iterator[str]:
    session = [each for each in records if each["kind"] == "session"][-1]
    versions = {
        each["configuration"]: each["version"] for each in records if each["kind"] == "version"
    }
    told = ", ".join(
        f"{PEERS[name].title} {versions[name]}" for name in (OCKHAM, OPENVINO) if name in versions
    )
    shares = [each["others_share"] for each in runs]
    yield (
        f"{session['date']}, commit {session['commit'] or 'not known'}, {session['processor']}, "
        f"{session['cores']} cores, Linux {session['kernel']}, Python {session['python']}; "
        f"Ockham's kernels: {session['isa']}; {told}. Beside the runs, other processes used "
        f"{statistics.median(shares):.0%} of the cores (median; {max(shares):.0%} at most).\n"
    )


def _section(workload: Workload, runs: Sequence[Record]) -> Iterator[str]:
    yield f"## {workload.title}\n"
    yield (SMOLLM2 if workload.asks else RANDOM).format(share=workload.imposed_share or 0.0)
    lengths = [each["prompt_tokens"] for each in runs]
    about = (
        f"{min(lengths):,}"
        if min(lengths) == max(lengths)
        else (f"{min(lengths):,} to {max(lengths):,}")
    )
    rounds = len({each["round"] for each in runs})
    yield (
        f"Prompts of {about} tokens, {workload.new_tokens} new ones; {rounds} "
        f"round{'s' * (rounds > 1)}.\n"
    )
    of = {
        each.name: {run["round"]: run for run in runs if run["configuration"] == each.name}
        for each in configurations(workload)
    }
    heads = ["engine", "setting", "pairs read"]
    if workload.timed:
        heads += ["first token, s", "over plain", "a token, ms", "over plain"]
        heads += ["all, s", "over plain"]
    heads += ["as plain", *(["right"] if workload.asks else [])]
    for kind, title in KINDS.items():
        rows = [each for each in configurations(workload) if each.kind == kind and of[each.name]]
        if not rows:
            continue
        yield f"### {title}\n"
        yield _row(heads)
        yield "|" + "---|" * len(heads)
        for each in rows:
            yield _row(_cells(workload, each, of[each.name], of[each.baseline]))
        yield ""
        if workload.timed:
            yield from _ratios(rows, of)


def _cells(
    workload: Workload,
    each: Configuration,
    runs: dict[int, Record],
    plain: dict[int, Record],
) -> list[str]:
    cells = [PEERS[each.engine].title, each.told, _pairs_read(workload, each, runs)]
    if workload.timed:
        for name, unit, digits in (("first_s", 1.0, 2), ("token_s", 1e3, 1)):
            values = [run[name] * unit for run in runs.values()]
            low, middle, high = min(values), statistics.median(values), max(values)
            spread = f" ({low:.{digits}f} to {high:.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{middle:.{digits}f}{spread}")
            cells.append(_times(runs, plain, name))
        whole_s = statistics.median(run["whole_s"] for run in runs.values())
        cells += [f"{whole_s:.1f}", _times(runs, plain, "whole_s")]
    alike = [
        _leading(run["tokens"], plain[round_]["tokens"])
        for round_, run in runs.items()
        if round_ in plain
    ]
    cells.append(f"{statistics.mean(alike):.0f}" if alike else "-")
    if workload.asks:
        right = sum(run["score"] == 1.0 for run in runs.values())
        cells.append(f"{right} of {len(runs)}")
    return cells


def _times(runs: dict[int, Record], plain: dict[int, Record], name: str) -> str:
    if runs is plain or runs == plain:
        return "1"
    found = _ratio(runs, plain, name)
    return "-" if found is None else f"{found.value:.2f}"


def _ratio(mine: dict[int, Record], theirs: dict[int, Record], name: str) -> Ratio | None:
    """How many times as fast `mine` is, in the rounds that have both."""
    both = sorted(mine.keys() & theirs.keys())
    pairs = [(theirs[round_][name], mine[round_][name]) for round_ in both]
    return paired_ratio(pairs) if pairs else None


def _leading(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are equal, from the first on."""
    count = 0
    for a, b in zip(one, other, strict=True):
        if a != b:
            break
        count += 1
    return count


def _pairs_read(workload: Workload, each: Configuration, runs: dict[int, Record]) -> str:
    if each.kind in ("plain", "budget"):
        return "100%"
    if not each.is_ockham:
        shares = [trishape_share(run["prompt_tokens"], workload.budget) for run in runs.values()]
        return f"{statistics.mean(shares):.0%}" if each.kind == "fixed" else "not told"
    return f"{statistics.mean(_ledger_share(workload, run) for run in runs.values()):.0%}"


def _ledger_share(workload: Workload, run: Record) -> float:
    """What is left of the operations of attention in the prompt: nothing is saved after it."""
    saved = sum(each["flops"] for each in run["told"]["ledger"]["saved"].values())
    rows = run["prompt_tokens"]
    whole = 4 * workload.query_width * rows * (rows + 1) / 2
    return float(1 - saved / whole)


def _ratios(rows: Sequence[Configuration], of: dict[str, dict[int, Record]]) -> Iterator[str]:
    """Each of Ockham's beside OpenVINO's of the same kind."""
    for theirs in (each for each in rows if not each.is_ockham):
        for ours in (each for each in rows if each.is_ockham):
            first, token, whole = (
                _ratio(of[ours.name], of[theirs.name], name)
                for name in ("first_s", "token_s", "whole_s")
            )
            if first is not None:
                yield (
                    f"- Ockham, {ours.told}, over OpenVINO, {theirs.told}: first token {first}, "
                    f"a token {token}, all {whole}."
                )
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
