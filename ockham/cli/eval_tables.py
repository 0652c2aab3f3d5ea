"""The tables that `ockham eval` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ockham.cli.report import quantity

if TYPE_CHECKING:
    from ockham.lab.difference import Difference
    from ockham.lab.evaluate import Score


def score_lines(scores: list[Score]) -> list[str]:
    """A table of scores with their 95% intervals: a line for each task and each of its levels."""
    rows = [("task", "level", "items", "right", "any right", "perplexity", "bits/byte", "tokens")]
    for score in scores:
        rows.append(
            (
                score.source if score.level is None else "",
                score.level or "all",
                str(score.items),
                share(score.score, score.score_interval),
                share(score.any_right, score.any_right_interval),
                number(score.perplexity, score.perplexity_interval),
                number(score.bits_per_byte, score.bits_per_byte_interval),
                f"{score.prompt_tokens:.0f} + {score.generated_tokens:.0f}",
            )
        )
    cut = sum(score.cut_short for score in scores if score.level is None)
    notes = [f"{cut} completions ran into their limit of tokens"] if cut else []
    return [*table(rows), "in brackets: 95% intervals; tokens: prompt + completion, mean", *notes]


def comparison_lines(report: dict[str, Any]) -> list[str]:
    """How the candidate differs from the baseline: a line for each task, and one for all."""
    head = ("task", "items", "agreement", "KL mean (nats)", "KL p99", "same completion")
    rows: list[tuple[str, ...]] = [(*head, "differs at", "score change", "perplexity ratio")]
    for found in report["differences"]:
        rows.append(_difference_row(found))
    against = ", ".join(f"{k}={v}" for k, v in report["settings"]["against"].items())
    decoded = report["settings"]["decoded"]
    notes = []
    if decoded:
        notes = [
            f"agreement and KL: while decoding, beside {' and '.join(decoded)}; "
            "perplexity: of texts that are read as prompts"
        ]
    return [
        f"baseline   {_named(report['baseline'])}",
        f"candidate  {_named(report['candidate'])}: {against or 'the same settings'}",
        *table(rows),
        "in brackets: 95% intervals, of items; 'differs at': median first token that differs",
        *notes,
    ]


def _named(side: dict[str, Any]) -> str:
    size = quantity(side["weight_bytes"], "B")
    return f"{side['config'].model}, {side['weights']}, {size} of weights"


def _difference_row(found: Difference) -> tuple[str, ...]:
    change = ""
    if found.score_difference is not None:
        change = f"{found.baseline_score:.1%} -> {found.candidate_score:.1%}"
        if found.score_difference_interval is not None:
            low, high = found.score_difference_interval
            change += f" [{low:+.1%}, {high:+.1%}]"
    return (
        ", ".join(part for part in (found.source or "all", found.level) if part),
        str(found.items),
        share(found.agreement, found.agreement_interval),
        number(found.kl_mean, found.kl_mean_interval),
        number(found.kl_p99, None),
        share(found.identical, found.identical_interval),
        "" if found.first_divergence is None else f"{found.first_divergence:.0f}",
        change,
        number(found.perplexity_ratio, found.perplexity_ratio_interval),
    )


def share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" + ("" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]")


def number(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" + ("" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]")


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of columns that stand under each other; a column that says nothing is left out."""
    used = [any(row[column] for row in rows[1:]) for column in range(len(rows[0]))]
    kept = [[cell for cell, say in zip(row, used, strict=True) if say] for row in rows]
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in kept
    ]
