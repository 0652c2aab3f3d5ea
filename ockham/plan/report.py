"""A plan for people and for the server: YAML of settings, words, and a page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from ockham.core.errors import ConfigError
from ockham.core.floors import parse_floors
from ockham.core.units import readable
from ockham.plan.result import GOALS, Figures, Plan, Tried, frontier
from ockham.plan.space import Value

WIDTH, HEIGHT, MARGIN = 640, 360, 56
SHOWN = ("seconds", "ttft_p95", "tpot_p95", "tokens_per_second", "memory", "joules")
"""Figures of cost in tables."""
QUALITIES = ("kl", "kl_p99", "agreement")


def settings(plan: Plan) -> dict[str, Value]:
    """What the plan sets: the changes of the chosen configuration, and for approximate ones the
    floor that the guard watches, if it is one that it can."""
    own = dict(plan.chosen.changes)
    watched = [term for term in plan.floors.split(", ") if term.startswith(("kl<", "agreement>"))]
    if plan.chosen.quality and watched:
        try:
            own["guard_floor"] = parse_floors(", ".join(watched)).text
        except ConfigError:  # narrower or wider than what can be watched
            return own
    return own


def settings_yaml(plan: Plan) -> str:
    """The settings that `--config` takes: the model, and what the plan changes, with the plan in
    words above it."""
    import yaml

    named = {"model": plan.model, **settings(plan)}
    flags = {name.replace("_", "-"): value for name, value in named.items()}
    told = [
        f"Made by `ockham plan` on {plan.made[:10]} for the workload {plan.workload}"
        f" on {plan.machine or 'this machine'}.",
        f"Floor: {plan.floors or 'none, so that only exact settings were looked at'}.",
        *plan.words,
    ]
    comment = "".join(f"# {line}\n" for line in told)
    return comment + yaml.safe_dump(flags, sort_keys=False, allow_unicode=True)


def told(plan: Plan) -> list[str]:
    """The plan in words, for a terminal."""
    lines = [f"chosen: {plan.chosen.point}", *plan.words]
    for each in plan.contributions:
        lines.append(
            f"Without {each.setting}={each.value} it takes {each.goal_without:.2f} of the "
            f"{plan.goal} that it takes with it{_told_quality(each.quality_without)}."
        )
    names = [
        name
        for name in (*SHOWN, *QUALITIES, *plan.chosen.quality)
        if name in {**plan.default.predicted, **plan.chosen.quality}
    ]
    rows = [["", "default", "", "chosen", ""], ["", *("predicted", "measured") * 2]]
    for name in dict.fromkeys(names):
        if name in ("positions",):
            continue
        cells = [
            _shown(name, figures.get(name))
            for tried in (plan.default, plan.chosen)
            for figures in ({**tried.predicted}, {**tried.measured, **tried.quality})
        ]
        rows.append([name, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.append(
        f"Configurations of what pays alone: {plan.space}. Quality measured of {plan.judged}, on "
        f"{plan.judged_cases} cases. Time: {plan.seconds:.0f} s."
    )
    return lines


def explained(plan: Plan) -> list[str]:
    """Every configuration that was looked at, and every choice that was left out, with why."""
    lines = []
    first = [plan.chosen] if plan.is_default else [plan.default, plan.chosen]
    for each in [*first, *plan.tried]:
        goal = each.predicted.get(plan.goal)
        base = plan.default.predicted[plan.goal]
        share = "" if goal is None else f": {goal / base:.2f} of the default's {plan.goal}"
        why = f"; {each.why}" if each.why else ""
        lines.append(f"{each.verdict}: {each.point}{share}{_told_quality(each.quality)}{why}")
    lines += [f"left out: {names}: {why}" for names, why in _left_out(plan)]
    return lines


def _left_out(plan: Plan) -> list[tuple[str, str]]:
    """The choices that were not gone into, those with the same reason together."""
    alike: dict[str, list[str]] = {}
    for name, why in plan.left_out.items():
        alike.setdefault(why, []).append(name)
    return [(", ".join(names), why) for why, names in alike.items()]


def page(plan: Plan) -> str:
    """One HTML page with nothing outside it: the frontier, every point's settings and figures, what
    each change contributes, and what was left out."""
    chosen, default = plan.chosen, plan.default
    points = [default, chosen, *plan.tried]
    metric = "kl"
    title = f"Plan for {plan.model}: {plan.workload}"
    facts = [
        ("floor", plan.floors or "none"),
        ("minimised", f"{plan.goal}: {GOALS[plan.goal]}"),
        ("machine", plan.machine),
        ("numerics id", plan.numerics_id),
        (
            "requests",
            f"{plan.requests}" + ("" if plan.rate is None else f", {plan.rate:g} a second"),
        ),
        ("made", plan.made),
        ("search", f"{plan.ended}; {plan.judged} configurations judged, {plan.seconds:.0f} s"),
    ]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _table([], facts),
        "<h2>Why this one</h2>",
        f"<p><b>{html.escape(str(chosen.point))}</b></p>",
        *(f"<p>{html.escape(line)}</p>" for line in plan.words),
        "<h2>What was found</h2>",
        _plot(points, frontier(points, plan.goal, metric), plan, metric),
        "<h2>Predicted and measured</h2>",
        _figures_table(default, chosen),
        "<h2>What each change contributes</h2>",
        _contributions(plan),
        "<h2>Every configuration that was looked at</h2>",
        _tried_table(points, plan),
        "<h2>Choices that were not gone into</h2>",
        _table(["choice", "why"], _left_out(plan)),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ccc;padding:.3em "
    ".8em .3em 0;text-align:left;vertical-align:top}th{font-weight:600}svg{max-width:100%}"
    "svg text{font:12px system-ui,sans-serif}"
)


def _contributions(plan: Plan) -> str:
    if not plan.contributions:
        return "<p>The default changes nothing.</p>"
    rows = [
        (
            f"{each.setting}={each.value}",
            f"{each.goal_without:.2f}",
            _told_quality(each.quality_without).strip(" ,") or "as with it",
        )
        for each in plan.contributions
    ]
    return _table(["without", f"{plan.goal}, times as much", "quality"], rows)


def _figures_table(default: Tried, chosen: Tried) -> str:
    names = dict.fromkeys(
        [*SHOWN, *sorted({*default.predicted, *chosen.quality} - {*SHOWN, "positions"})]
    )
    rows = []
    for name in names:
        cells = [
            _shown(name, figures.get(name))
            for each in (default, chosen)
            for figures in (each.predicted, {**each.measured, **each.quality})
        ]
        if any(cells):
            rows.append((name, *cells))
    head = ["", "default, predicted", "measured", "chosen, predicted", "measured"]
    return _table(head, rows)


def _tried_table(points: Sequence[Tried], plan: Plan) -> str:
    rows = []
    for each in points:
        goal = each.predicted.get(plan.goal)
        rows.append(
            (
                each.verdict,
                str(each.point),
                "" if goal is None else f"{goal / plan.default.predicted[plan.goal]:.3f}",
                *(_shown(name, each.quality.get(name)) for name in QUALITIES),
                f"{each.cases}" if each.cases else "",
                each.why,
            )
        )
    head = ["verdict", "settings", f"{plan.goal}, of the default's", *QUALITIES, "cases", "why"]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>")
    lines += [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    ]
    return "\n".join([*lines, "</table>"])


def _plot(points: Sequence[Tried], best: Sequence[Tried], plan: Plan, metric: str) -> str:
    """Each configuration by its goal, as a share of the default's, and its loss of quality."""
    base = plan.default.predicted[plan.goal]

    def place(each: Tried) -> tuple[float, float] | None:
        goal = each.predicted.get(plan.goal)
        loss = 0.0 if each.verdict == "default" else each.quality.get(metric)
        return None if goal is None or loss is None else (goal / base, loss)

    placed = [(each, where) for each in points if (where := place(each)) is not None]
    if len(placed) < 2:
        return "<p>Only the default was judged.</p>"
    most_x = max(1.0, *(x for _, (x, _) in placed)) * 1.05
    most_y = max(1e-6, *(y for _, (_, y) in placed)) * 1.1

    def at(x: float, y: float) -> tuple[float, float]:
        # Losses span orders of magnitude: their square root shows small ones too.
        return (
            MARGIN + x / most_x * (WIDTH - 2 * MARGIN),
            HEIGHT - MARGIN - math.sqrt(y / most_y) * (HEIGHT - 2 * MARGIN),
        )

    lines = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="cost and loss of quality">',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" '
        'stroke="#888"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        f"{html.escape(plan.goal)}, share of the default's</text>",
        f'<text x="12" y="{MARGIN - 16}">KL divergence, nats (square-root scale)</text>',
    ]
    for share in (0.25, 0.5, 0.75, 1.0):
        x, y = at(share, 0.0)
        lines.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{share}</text>')
    for share in (0.25, 1.0):
        x, y = at(0.0, most_y * share / 1.1)
        lines.append(
            f'<text x="{x - 6:.1f}" y="{y:.1f}" text-anchor="end">{most_y * share / 1.1:.2g}</text>'
        )
    path = " ".join(
        f"{x:.1f},{y:.1f}" for each in best if (where := place(each)) for x, y in [at(*where)]
    )
    lines.append(f'<polyline points="{path}" fill="none" stroke="#36c" stroke-width="1.5"/>')
    for each, where in placed:
        x, y = at(*where)
        colour = {"chosen": "#080", "default": "#000", "holds": "#36c"}.get(each.verdict, "#bbb")
        radius = 6 if each.verdict in ("chosen", "default") else 4
        label = html.escape(f"{each.verdict}: {each.point}")
        lines.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">'
            f"<title>{label}</title></circle>"
        )
    return "\n".join([*lines, "</svg>"])


def _told_quality(quality: Figures) -> str:
    told = [f"{name} {_shown(name, quality[name])}" for name in quality if name != "positions"]
    return f", with {', '.join(told)}" if told else ""


def _shown(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    if name in ("memory", "bytes"):
        return readable(int(value))
    return f"{value:.4g}"
