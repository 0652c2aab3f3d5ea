"""benchmarks/RESULTS.md from the records of runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.peers.drafts import section as drafts_section
from benchmarks.peers.figures import BY_BANDWIDTH, MEMORY, Figures
from benchmarks.peers.peers import BITS, CONFIGURATIONS, PEERS, Configuration
from benchmarks.peers.reading import reading
from benchmarks.peers.results import DISTURBED_SHARE, Record
from benchmarks.peers.returning import sections
from benchmarks.peers.workloads import (
    WORKLOADS,
    Batch,
    Drafts,
    FirstToken,
    Mixed,
    Returning,
    Warm,
    takes_part,
)

Tabled = Batch | Mixed | FirstToken
"""Workloads that have a section of their own."""

REFERENCE = "transformers-bf16"

METHOD = """\
Every engine has the same random checkpoint in the shape of TinyLlama (1.1B), converted to its own
format, and works on token ids, greedily, with {threads} threads; no token ends a sequence, and an
engine that gives fewer tokens than asked for is an error. In each round (there were {rounds}), all
configurations of the same number of bits do a workload one right after the other, in rotating
order, on prompts that are new in every round and the same for all. The machine's limits are sampled
before and after each run. Ratios are of pairs that were measured one right after the other: the
geometric mean, a 95% interval (Student's, of the logarithms) and the number of pairs. A ratio above
1 says that Ockham is faster, or takes less memory. *Of the limit*: the least possible time (the
larger of weight and state bytes over the bandwidth, and operations over the median arithmetic rate)
over the time taken. The bandwidth is the one beside the run: while an engine decodes it is stopped
every quarter of a second for as long as one pass over 256 MB takes, which does not count as its
time. Random weights have no quality: KL is that of the same configuration of a real model (see
*How far from the model*).
"""


def report(records: Sequence[Record]) -> str:
    """The whole page. Raises ValueError where nothing has been measured."""
    figures = Figures(records)
    if not figures.sessions or not figures.read_rates:
        raise ValueError("there are no results to report; `python -m benchmarks.peers run` first.")
    parts = ["# Ockham beside other engines\n", *_summary(figures), *_machine(figures)]
    rounds = len({each["round"] for each in records if each["kind"] == "run"})
    threads = figures.sessions[-1]["threads"]
    parts.append(METHOD.format(threads=threads, rounds=rounds))
    parts.append(
        f"Runs that do not count, because other processes used more than {DISTURBED_SHARE:.0%} of "
        f"the cores beside them: {figures.disturbed}.\n"
    )
    parts += _commits(figures)
    parts.append("## What is read from it\n")
    parts.append("\n".join(reading(figures)) + "\n")
    parts += _quality(figures)
    for workload in WORKLOADS:
        if isinstance(workload, (Returning, Warm, Drafts)):
            continue
        parts += _section(figures, workload)
        if workload.name == "decode-1":
            parts += _by_bandwidth(figures)
    parts += sections(figures)
    parts += drafts_section(figures)
    parts += _memory(figures)
    parts += _agreement(figures)
    parts += _absent(figures)
    return "\n".join(parts)


def _summary(figures: Figures) -> Iterator[str]:
    """The table at the top: tokens per second of every configuration."""
    titles = {
        name: title
        for name, title in _titles().items()
        if any(figures.configurations(name, bits) for bits in BITS)
    }
    if not titles:
        return
    yield "Tokens per second, medians of the rounds, the fastest first; a dash was not measured.\n"
    yield _row(["bits", "engine", *titles.values()])
    yield "|" + "---|" * (len(titles) + 2)
    for bits in BITS:
        rows = {each.name: each for name in titles for each in figures.configurations(name, bits)}
        for each in sorted(rows.values(), key=lambda row: _speeds(figures, titles, row)):
            yield _row([str(bits), each.title, *(_rate(figures, name, each) for name in titles)])
    yield ""


def _titles() -> dict[str, str]:
    return {each.name: each.title for each in WORKLOADS if isinstance(each, Batch)}


def _speeds(figures: Figures, workloads: Iterable[str], each: Configuration) -> list[float]:
    """The fastest in the first workload first; who has not done it, last."""
    return [
        -figures.median(name, each) if each in figures.configurations(name, each.bits) else 0.0
        for name in workloads
    ]


def _rate(figures: Figures, workload: str, each: Configuration) -> str:
    if each not in figures.configurations(workload, each.bits):
        return "-"
    values = [sample.value for sample in figures.samples(workload, each)]
    return f"{statistics.median(values):.{1 if min(values) < 100 else 0}f}"


def _machine(figures: Figures) -> Iterator[str]:
    first, last = figures.sessions[0], figures.sessions[-1]
    dates = sorted({first["date"], last["date"]})
    yield (
        f"{' to '.join(dates)}, {last['processor']}, {last['cores']} cores, "
        f"{last['memory_bytes'] / 2**30:.0f} GiB, Linux {last['kernel']}, "
        f"Python {last['python']}; Ockham's kernels: {last['isa']}.\n"
    )
    yield "| limit, all threads | median | lowest | highest |\n|---|---|---|---|"
    for name, rates, unit in (
        ("memory read", figures.read_rates, "GB/s"),
        ("int8", figures.int8_rates, "GOP/s"),
        ("bf16", figures.bf16_rates, "GFLOP/s"),
    ):
        values = (statistics.median(rates), min(rates), max(rates))
        yield f"| {name} | " + " | ".join(f"{value / 1e9:.0f} {unit}" for value in values) + " |"
    yield "\n| engine | version | mixed traffic is served by |\n|---|---|---|"
    for peer in PEERS.values():
        names = [each.name for each in CONFIGURATIONS if each.peer == peer.name]
        versions = {figures.versions[name] for name in names if name in figures.versions}
        if versions:
            yield f"| {peer.title} | {', '.join(sorted(versions))} | {peer.mixed} |"
    yield ""


def _commits(figures: Figures) -> Iterator[str]:
    """Rounds count from 1 for a reader."""
    each = [
        f"{commit} in round{'s' * (len(rounds) > 1)} "
        + ", ".join(str(round_ + 1) for round_ in sorted(rounds))
        for commit, rounds in figures.commits.items()
    ]
    if each:
        yield f"Commits of Ockham that were measured: {'; '.join(each)}.\n"


def _kl(figures: Figures, each: Configuration) -> str:
    found = figures.kl(each)
    return "not measured" if found is None else f"{found:.4f}"


def _quality(figures: Figures) -> Iterator[str]:
    measured = [each for each in CONFIGURATIONS if each.name in figures.quality]
    if not measured:
        return
    first = figures.quality[measured[0].name]
    yield "## How far from the model\n"
    yield (
        f"{first['model']}, rounded to bf16 and converted for each engine as the random "
        f"checkpoint is, beside the same model in fp32, at {first['positions']:,} positions of "
        "the texts in ockham/lab/evidence/real_texts.json: KL divergence in nats a token, how "
        "often the likeliest token is the same, perplexity beside that of fp32, and the size of "
        "the converted file. Each engine computed its own logits.\n"
    )
    yield "| configuration | bits | KL | agreement | perplexity | MB |\n|---|---|---|---|---|---|"
    for bits in BITS:
        rows = [each for each in measured if each.bits == bits]
        for each in sorted(rows, key=lambda row: figures.quality[row.name]["kl"]):
            found = figures.quality[each.name]
            yield _row(
                [
                    each.title,
                    str(bits),
                    f"{found['kl']:.4f}",
                    f"{found['agreement']:.1%}",
                    f"x {found['perplexity_ratio']:.3f}",
                    f"{found['file_bytes'] / 1e6:.0f}",
                ]
            )
    yield ""


def _section(figures: Figures, workload: Tabled) -> Iterator[str]:
    tables = [table for bits in BITS for table in _table(figures, workload, bits)]
    if tables:
        yield f"## {workload.title}\n"
        yield _described(workload) + "\n"
        yield from tables


def _described(workload: Tabled) -> str:
    if isinstance(workload, Batch):
        if workload.decodes:
            return (
                f"{workload.prompts} prompt{'s' * (workload.prompts > 1)} of "
                f"{workload.prompt_tokens} tokens, {workload.new_tokens} new ones each; the rate "
                "is that of all tokens after the first ones."
            )
        return f"From {workload.prompt_tokens:,} prompt tokens to the first new one."
    if isinstance(workload, Mixed):
        return (
            f"{workload.requests} requests, {workload.requests_per_s:g} a second by a Poisson "
            f"process, prompts of {workload.prompt_tokens[0]} to {workload.prompt_tokens[1]:,} and "
            f"outputs of {workload.new_tokens[0]} to {workload.new_tokens[1]} tokens "
            "(log-uniform); generated tokens over the time to the end of the last request."
        )
    return (
        f"A fresh process, the model's files in the page cache, {workload.prompt_tokens} prompt "
        "tokens; from the start of the process to the first token at the caller."
    )


def _table(figures: Figures, workload: Tabled, bits: int) -> Iterator[str]:
    rows = figures.configurations(workload.name, bits)
    if not rows:
        return
    ours = [each for each in rows if each.is_ockham]
    mixed = isinstance(workload, Mixed)
    heads = [f"{bits} bits", "KL", "tokens/s" if not _in_seconds(workload) else "seconds"]
    heads += ["lowest to highest"]
    heads += ["median wait for the first token"] if mixed else []
    heads += ["of the limit"] if isinstance(workload, Batch) else []
    heads += [f"{each.title} / it" for each in ours]
    yield _row(heads)
    yield "|" + "---|" * len(heads)
    for each in sorted(rows, key=lambda row: _rank(figures, workload, row)):
        samples = figures.samples(workload.name, each)
        values = [sample.value for sample in samples]
        digits = 2 if _in_seconds(workload) else 1 if min(values) < 100 else 0
        cells = [each.title, _kl(figures, each), f"{statistics.median(values):.{digits}f}"]
        cells.append(f"{min(values):.{digits}f} to {max(values):.{digits}f}")
        if mixed:
            waits = [sample.first_token_s for sample in samples if sample.first_token_s is not None]
            cells.append(f"{statistics.median(waits):.2f} s")
        if isinstance(workload, Batch):
            cells.append(f"{figures.limit_share(workload.name, each):.0%}")
        cells += [_against(figures, workload.name, our, each) for our in ours]
        yield _row(cells)
    yield ""


def _in_seconds(workload: Tabled) -> bool:
    return not isinstance(workload, (Batch, Mixed))


def _rank(figures: Figures, workload: Tabled, each: Configuration) -> float:
    """Best first."""
    median = figures.median(workload.name, each)
    return median if _in_seconds(workload) else -median


def _by_bandwidth(figures: Figures) -> Iterator[str]:
    yield "### At the same bandwidth\n"
    yield (
        "The bandwidth may change by half between the two runs of a pair. So the same once more, "
        "each rate divided by the bandwidth in its own pauses.\n"
    )
    for bits in BITS:
        rows = figures.configurations(BY_BANDWIDTH, bits)
        if not rows:
            continue
        ours = [each for each in rows if each.is_ockham]
        yield _row([f"{bits} bits", "tokens for 1 GB", *(f"{each.title} / it" for each in ours)])
        yield "|" + "---|" * (2 + len(ours))
        for each in sorted(rows, key=lambda row: -figures.median(BY_BANDWIDTH, row)):
            cells = [each.title, f"{figures.median(BY_BANDWIDTH, each):.2f}"]
            yield _row(cells + [_against(figures, BY_BANDWIDTH, our, each) for our in ours])
        yield ""


def _memory(figures: Figures) -> Iterator[str]:
    yield "## Peak memory\n"
    yield (
        "The most that was ever resident (of the process and its children, pages of mapped files "
        "included), from loading on. Ratios are of workers that did the same workloads.\n"
    )
    for bits in BITS:
        rows = figures.configurations(MEMORY, bits)
        if not rows:
            continue
        ours = [each for each in rows if each.is_ockham]
        heads = [f"{bits} bits", "MB", *(f"it / {each.title}" for each in ours)]
        yield _row(heads)
        yield "|" + "---|" * len(heads)
        for each in sorted(rows, key=lambda row: figures.highest(MEMORY, row)):
            cells = [each.title, f"{figures.highest(MEMORY, each) / 1e6:,.0f}"]
            yield _row(cells + [_against(figures, MEMORY, our, each) for our in ours])
        yield ""


def _agreement(figures: Figures) -> Iterator[str]:
    """That all engines compute the same model: their first tokens beside the reference's."""
    rows = []
    for each in CONFIGURATIONS:
        equal, total = figures.agreement(each.name, REFERENCE)
        if total and each.name != REFERENCE:
            rows.append(_row([each.title, f"{equal} of {total}"]))
    if rows:
        yield "## The same model?\n"
        yield (
            "First tokens that equal those of transformers in bf16 on the same prompts. By chance "
            "it would be one in 32,000; logits of random weights lie close together, so that "
            "rounding to 4 bits moves many of the largest.\n"
        )
        yield "| configuration | equal |\n|---|---|"
        yield from rows
        yield ""


def _absent(figures: Figures) -> Iterator[str]:
    lines = [f"- {peer.title}, {reason}" for peer in PEERS.values() for reason in peer.lacks]
    lines += [f"- {name}: {reason}" for name, reason in figures.failures.items()]
    for each in CONFIGURATIONS:
        missing = [
            workload.title.lower()
            for workload in WORKLOADS
            if takes_part(each, workload) and (workload.name, each.name) not in figures.measured
        ]
        if len(missing) == sum(takes_part(each, workload) for workload in WORKLOADS):
            missing = ["every workload"]
        if missing and each.name not in figures.failures:
            lines.append(f"- {each.title}, not measured (or not undisturbed): {'; '.join(missing)}")
    if lines:
        yield "## Left out\n"
        yield "\n".join(lines) + "\n"


def _against(figures: Figures, workload: str, ours: Configuration, each: Configuration) -> str:
    if each.is_ockham:
        return "" if ours is not each else "1"
    ratio = figures.ratio(workload, ours, each)
    return "no pair" if ratio is None else str(ratio)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
