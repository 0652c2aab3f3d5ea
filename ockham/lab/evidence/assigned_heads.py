"""Evidence for the pattern whose heads choose by rules that a calibration found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ockham.core.registry import make, make_asks
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.patterns import asked, attention_flops, questions, recall_of
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.evidence.together import prefilled, reading, report_of
from ockham.lab.head_samples import HeadSamples
from ockham.lab.returning import Query

MINFERENCE = (
    "MInference (paper 368, arXiv:2407.02490): prompts of a million tokens read up to 10 times as "
    "fast on an A100, with maintained accuracy; below some 10,000 tokens most of its heads are "
    "nearly dense"
)
NAME, SHARE, LAST = "minference", 0.5, 64
CALIBRATED_ON = 3
"""Other texts of the same kind."""


@dataclass(frozen=True, slots=True)
class _OrFull(Query):
    """A query to an engine whose setting names a pattern: without its asks, it asks for none."""

    def request(self, name: str, approximate: bool) -> Request:
        """See `Query`."""
        found = Query.request(self, name, approximate)
        if not approximate:
            found.asks = make_asks({"pattern/full": True})
        return found


def _setting(bench: Bench, texts: Sequence[Sequence[int]], directory: str) -> str:
    """The engine's own setting if it names a file; else one whose heads such texts have found."""
    given = bench.config.attention_pattern
    if given.startswith(f"{NAME}:") and "heads=" in given:
        return given
    found = make("pattern", NAME).calibration()
    samples = HeadSamples(bench.config.model, max(map(len, texts)), bench.config.threads)
    try:
        tokens = samples.show(texts, found, bench.tell)
    finally:
        samples.close()
    file = Path(directory) / "heads.json"
    file.write_bytes(found.result({"model": bench.config.model, "tokens": tokens}))
    return f"{NAME}:heads={file}"


@evidence("pattern", "minference")
def minference(bench: Bench) -> Row:
    """One key's word among hundreds, of which each head of the prompt's blocks visits a share that
    other such questions gave it."""
    levels = bench.suite.needle_levels[-1:]
    others = questions(bench, bench.engine(), bench.seed + 1, CALIBRATED_ON, levels)
    with TemporaryDirectory() as directory:
        pattern = _setting(bench, [query.tokens for query in others], directory)
        return asked(
            bench,
            bench.engine(attention_pattern=pattern),
            NAME,
            {"share": SHARE, "last_tokens": LAST},
            f"heads visit {SHARE:.0%} of the blocks of {BLOCK_KEYS} keys on average, each by the "
            f"rule and the share that {len(others)} other questions gave it, but for the prompt's "
            "end",
            MINFERENCE,
            query=_OrFull,
            attention_pattern=pattern,
        )


def _report_setting(bench: Bench, directory: str) -> str:
    """Heads that were found on other reports in English."""
    engine = bench.engine(reuse="none", speculative_config="none")
    texts = [report_of(engine, bench.seed + 1 + i, REPORT)[0] for i in range(CALIBRATED_ON)]
    return _setting(bench, texts, directory)


REPORT = 4096
"""Tokens of a report that heads are found on."""


@evidence(
    "pattern",
    "minference-prefill",
    "The same on a long report in English: the time until it is read. With "
    "`--attention-pattern minference:heads=FILE,share=0.4` it is measured with these settings.",
)
def minference_prefill(bench: Bench) -> Row:
    """A report of as many tokens as fit, and a question for a fact that is hidden in it."""
    with TemporaryDirectory() as directory:
        pattern = _report_setting(bench, directory)
        engine = bench.engine(attention_pattern=pattern)
        prompt, word = report_of(engine, bench.seed)
        plain = reading(prompt, word, {"pattern/full": True})
        choosing = reading(prompt, word, {"pattern/minference": True})
        share = make("pattern", pattern).options.share
        row = bench.compare(
            "pattern",
            "minference-prefill",
            lambda: prefilled(engine, plain),
            lambda: prefilled(engine, choosing),
            lambda outcome: attention_flops(engine, outcome.ledger),
            exact=False,
            what=(
                f"a report in English of {len(prompt)} tokens is read; the time is that to the "
                f"first token; heads cost {share:.0%} of full attention on average, by rules found "
                f"on {CALIBRATED_ON} other reports"
            ),
            unit="FLOPs of attention",
            claim=MINFERENCE,
        )
        row.identical = None
        row.recall = recall_of(bench, choosing, NAME, attention_pattern=pattern)
        return row


THRESHOLD = 0.97
"""Of the estimated attention that the other pattern visits."""


@evidence(
    "pattern",
    "minference-beside",
    "The same beside `xattention`, at as many FLOPs: the time until the report is read.",
)
def minference_beside(bench: Bench) -> Row:
    """Without stands for the other pattern."""
    with TemporaryDirectory() as directory:
        pattern = _report_setting(bench, directory)
        engine = bench.engine(attention_pattern=pattern)
        prompt, word = report_of(engine, bench.seed)

        def flops(asks: dict[str, object]) -> int:
            ledger = prefilled(engine, reading(prompt, word, asks)).ledger
            return attention_flops(engine, ledger)

        other: dict[str, object] = {"pattern/xattention": {"threshold": THRESHOLD}}
        full, wanted = flops({"pattern/full": True}), flops(other)
        share = wanted / full
        for _ in range(2):  # blocks are visited whole, and the prompt's end sees all
            own = flops({"pattern/minference": {"share": share}})
            share = min(1.0, max(0.01, share + (wanted - own) / full))
        queries = (
            reading(prompt, word, other),
            reading(prompt, word, {"pattern/minference": {"share": share}}),
        )
        recalls = [
            recall_of(bench, of, name, attention_pattern=pattern)
            for of, name in zip(queries, ("xattention", NAME), strict=True)
        ]
        row = bench.compare(
            "pattern",
            "minference-beside",
            lambda: prefilled(engine, queries[0]),
            lambda: prefilled(engine, queries[1]),
            lambda outcome: attention_flops(engine, outcome.ledger),
            exact=False,
            what=(
                f"a report in English of {len(prompt)} tokens is read by xattention with a "
                f"threshold of {THRESHOLD}, whose recall is {recalls[0]:.1%}, and with heads that "
                f"cost as much, {share:.0%} of full attention, by rules found on {CALIBRATED_ON} "
                "other reports; the time is that to the first token"
            ),
            unit="FLOPs of attention",
            claim=MINFERENCE,
        )
        row.identical = None
        row.recall = recalls[1]
        return row
