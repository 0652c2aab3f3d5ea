"""benchmarks/RESULTS-embedding.md from the records of runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.embedding.documents import WORKLOADS, Workload
from benchmarks.embedding.engines import BITS, CONFIGURATIONS, ENGINES, REFERENCE, Configuration
from benchmarks.peers.ratios import paired_ratio
from benchmarks.peers.results import DISTURBED_SHARE, Record

METHOD = """\
The model is the real all-MiniLM-L6-v2 (22.7M parameters, 384 dimensions). Every engine is given the
same texts, with {threads} threads: tokenizing and batching count as its work. In each round (there
were {rounds}), all engines do a workload one right after the other, in rotating order, on texts
that are new in every round. sentence-transformers and ONNX Runtime sort by length and pad batches
of 32; ONNX Runtime has the model that its own optimiser fused, its int8 is dynamic quantisation for
each output; llama.cpp fills batches of 512 tokens. Ratios are of pairs of the same round: the
geometric mean, a 95% interval (Student's, of the logarithms) and the number of pairs; above 1,
Ockham is faster. A run beside which others used more than {disturbed:.0%} of the cores does not
count; {dropped} of {all} did not.
"""


class Figures:
    """The records, by workload and configuration."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.sessions = [each for each in records if each["kind"] == "session"]
        self.versions = {
            each["configuration"]: each["version"] for each in records if each["kind"] == "version"
        }
        self.failures = [each for each in records if each["kind"] in ("failure", "skipped")]
        self.all = [each for each in records if each["kind"] == "run"]
        self.runs = [each for each in self.all if each["others_share"] <= DISTURBED_SHARE]
        self.present = [
            each
            for each in CONFIGURATIONS
            if any(run["configuration"] == each.name for run in self.runs)
        ]

    def of(self, workload: Workload, configuration: Configuration) -> dict[int, Record]:
        """By round, the last where there are several."""
        return {
            each["round"]: each
            for each in self.runs
            if (each["workload"], each["configuration"]) == (workload.name, configuration.name)
        }


def report(records: Sequence[Record]) -> str:
    """The whole page. Raises ValueError where nothing has been measured that counts."""
    figures = Figures(records)
    if not figures.runs:
        raise ValueError(
            "there are no results that count; `python -m benchmarks.embedding run` on a machine "
            "with nothing else to do."
        )
    parts = ["# Embeddings beside other engines\n"]
    parts += _rates(figures, "documents", "Documents per second")
    parts += _rates(figures, "tokens", "Tokens per second")
    parts += _ratios(figures)
    parts += _nearness(figures)
    parts += _machine(figures)
    return "\n".join(parts)


def _rates(figures: Figures, what: str, title: str) -> Iterator[str]:
    yield f"## {title}\n"
    yield "Medians of the rounds, the lowest and the highest in brackets.\n"
    yield _row(["bits", "engine", *(each.title for each in WORKLOADS)])
    yield "|" + "---|" * (len(WORKLOADS) + 2)
    for bits in BITS:
        for each in figures.present:
            if each.bits == bits:
                cells = [_rate(figures.of(workload, each), what) for workload in WORKLOADS]
                yield _row([str(bits), each.title, *cells])
    yield ""


def _rate(runs: dict[int, Record], what: str) -> str:
    if not runs:
        return "-"
    rates = [each[what] / each["seconds"] for each in runs.values()]
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def _ratios(figures: Figures) -> Iterator[str]:
    ours = [each for each in figures.present if each.is_ockham]
    if not ours:
        return
    yield "## Ockham over the others, at the same number of bits\n"
    yield _row(["bits", "Ockham over", *(each.title for each in WORKLOADS)])
    yield "|" + "---|" * (len(WORKLOADS) + 2)
    for own in ours:
        for other in figures.present:
            if other.is_ockham or other.bits != own.bits:
                continue
            cells = []
            for workload in WORKLOADS:
                mine, theirs = figures.of(workload, own), figures.of(workload, other)
                pairs = [
                    (theirs[round_]["seconds"], mine[round_]["seconds"])
                    for round_ in sorted(mine.keys() & theirs.keys())
                ]
                cells.append(str(paired_ratio(pairs)) if pairs else "-")
            yield _row([str(own.bits), other.title, *cells])
    yield ""


def _nearness(figures: Figures) -> Iterator[str]:
    known = [
        (each, runs)
        for each in figures.present
        if each.name != REFERENCE and (runs := _compared(figures, each))
    ]
    if not known:
        return
    yield "## How near to sentence-transformers in fp32\n"
    yield _row(["engine", "mean cosine", "lowest cosine", "largest difference of a value"])
    yield "|---|---|---|---|"
    for each, runs in known:
        weights = [run["documents"] for run in runs]
        mean = sum(run["cosine_mean"] * n for run, n in zip(runs, weights, strict=True))
        lowest = min(run["cosine_min"] for run in runs)
        largest = max(run["largest_difference"] for run in runs)
        yield _row([each.title, f"{mean / sum(weights):.6f}", f"{lowest:.6f}", f"{largest:.1e}"])
    yield ""


def _compared(figures: Figures, each: Configuration) -> list[Record]:
    """All runs beside the reference, disturbed ones too: nothing of it is a time."""
    return [
        run for run in figures.all if run["configuration"] == each.name and "cosine_mean" in run
    ]


def _machine(figures: Figures) -> Iterator[str]:
    yield "## How it was measured\n"
    session = figures.sessions[-1]
    yield METHOD.format(
        threads=session["threads"],
        rounds=len({each["round"] for each in figures.all}),
        disturbed=DISTURBED_SHARE,
        dropped=len(figures.all) - len(figures.runs),
        all=len(figures.all),
    )
    yield (
        f"{session['date']}, commit {session['commit'] or 'not known'}, {session['processor']}, "
        f"{session['cores']} cores, Linux {session['kernel']}, Python {session['python']}; "
        f"Ockham's kernels: {session['isa']}.\n"
    )
    yield _row(["engine", "version"])
    yield "|---|---|"
    versions = {each.engine: figures.versions.get(each.name) for each in figures.present}
    for engine, version in versions.items():
        yield _row([ENGINES[engine].title, str(version)])
    yield ""
    for each in figures.failures:
        yield f"{each['configuration']} is missing: {each['reason']}\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
