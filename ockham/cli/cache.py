"""`ockham cache show`: what the prefix cache of a running server holds."""

from __future__ import annotations

from typing import Any

import click

from ockham.cli.command import Group
from ockham.cli.options import option
from ockham.cli.report import quantity
from ockham.cli.value_types import Integer
from ockham.core.errors import OckhamError

TIMEOUT_S = 30.0


@click.group(cls=Group)
def cache() -> None:
    """Look at the prefix cache of a running server."""


@cache.command()
@option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is.")
@option(
    "--api-key",
    envvar=["OCKHAM_ADMIN_API_KEY", "OCKHAM_API_KEY"],
    default=None,
    help="Key, if the server wants one; the administrator's shows the cache of all tenants.",
)
@option("--cache-salt", default=None, help="Show what was cached under this salt.")
@option(
    "--most-nodes", type=Integer(0), default=50, show_default=True, help="The largest are shown."
)
@option("--json", "as_json", is_flag=True, help="Write the answer as it comes.")
def show(
    url: str, api_key: str | None, cache_salt: str | None, most_nodes: int, as_json: bool
) -> None:
    """Print the tree of cached prefixes: size, uses, age, who reads it and what was said of it."""
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    body = {"cache_salt": cache_salt, "most_nodes": most_nodes}
    try:
        answer = httpx.post(f"{url}/v1/cache", json=body, headers=headers, timeout=TIMEOUT_S)
        report = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise OckhamError(f"{url} gives no answer that can be read ({error}).") from error
    if answer.status_code != 200:
        reason = report.get("error", {}).get("message", "") if isinstance(report, dict) else ""
        raise OckhamError(f"{url} refuses with {answer.status_code}: {reason}")
    if as_json:
        click.echo(answer.text)
        return
    for line in describe(report):
        click.echo(line)


def describe(report: dict[str, Any]) -> list[str]:
    """A line for each node, indented under the node that it goes on from."""
    lines = [
        f"{report['tokens_total']:,} tokens in {report['nodes_total']:,} nodes, "
        f"{quantity(report['bytes_total'], 'B')} of a pool of {quantity(report['pool_bytes'], 'B')}"
    ]
    depth: dict[int, int] = {}
    below: dict[int, list[dict[str, Any]]] = {}
    shown = {node["number"] for node in report["nodes"]}
    for node in report["nodes"]:
        below.setdefault(node["parent"] if node["parent"] in shown else -1, []).append(node)
    stack = list(reversed(below.get(-1, [])))
    while stack:
        node = stack.pop()
        level = depth.get(node["parent"], -1) + 1
        depth[node["number"]] = level
        lines.append("  " * level + _line(node))
        stack += reversed(below.get(node["number"], []))
    if len(shown) < report["nodes_total"]:
        lines.append(f"and {report['nodes_total'] - len(shown):,} nodes more")
    lines += [
        f"pinned {pin['name']}: {pin['tokens']:,} tokens{_of(pin['tenant'])}"
        for pin in report["pins"]
    ]
    return lines


def _line(node: dict[str, Any]) -> str:
    first, last = node["start"], node["start"] + node["tokens"]
    marks = [f"{node['readers']} reading"] if node["readers"] else []
    marks += ["pinned"] if node["pinned"] else []
    marks += [node["hint"]] if node["hint"] else []
    text = f"  {node['text']!r}" if node["text"] else ""
    return (
        f"[{first:,}, {last:,}) {quantity(node['bytes'], 'B')}, {node['hits']:,} uses, "
        f"{node['age_s']:.0f} s old, idle {node['idle_s']:.0f} s{_of(node['tenant'])}"
        f"{''.join(f', {mark}' for mark in marks)}{text}"
    )


def _of(tenant: str) -> str:
    return f", tenant {tenant}" if tenant else ""
