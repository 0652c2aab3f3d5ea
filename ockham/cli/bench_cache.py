"""`ockham bench cache`: what the tree of cached prefixes costs by itself, without a model."""

from __future__ import annotations

import time
from typing import Any

import click

from ockham.cli.options import option
from ockham.cli.spread import spread
from ockham.cli.value_types import Integer

GOAL_S = 0.005
GOAL_BYTES = 16.0
VOCABULARY = 50_000


@click.command()
@option("--nodes", type=Integer(1), default=100_000, show_default=True, help="Nodes in the tree.")
@option(
    "--node-tokens", type=Integer(1), default=64, show_default=True, help="Tokens of each of them."
)
@option(
    "--input-len", type=Integer(1), default=32_000, show_default=True, help="Tokens of the prompt."
)
@option("--page-tokens", type=Integer(1), default=16, show_default=True, help="Tokens of a page.")
@option("--repeats", type=Integer(1), default=20, show_default=True, help="Prompts to time.")
@option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def cache(
    nodes: int, node_tokens: int, input_len: int, page_tokens: int, repeats: int, as_json: bool
) -> None:
    """Time matching and inserting a long prompt in a full tree, and weigh the tree.

    Each prompt begins with half of one that is held, and goes on with new tokens.
    """
    import json

    report = measure(nodes, node_tokens, input_len, page_tokens, repeats)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    both = report["match_and_insert_s"]
    click.echo(f"{report['nodes']:,} nodes of {report['tokens']:,} tokens")
    click.echo(f"match              {_figure(report['match_s'])}")
    click.echo(f"insert             {_figure(report['insert_s'])}")
    click.echo(f"match and insert   {_figure(both)}, the goal is {1e6 * GOAL_S:,.0f} us")
    if report["bytes_per_token"] is not None:
        click.echo(
            f"memory             {report['bytes_per_token']:.1f} bytes a cached token beside its "
            f"keys and values, the goal is {GOAL_BYTES:.0f}"
        )


def measure(
    nodes: int, node_tokens: int, input_len: int, page_tokens: int, repeats: int
) -> dict[str, Any]:
    """Seconds, with their spread, and bytes (None for the plain tree, which does not know)."""
    import numpy as np

    from ockham.cache.native_tree import make_tree

    rng = np.random.default_rng(0)
    tree = make_tree(page_tokens, (0,), 1e-4)

    def table(tokens: int) -> list[Any]:
        return [np.zeros(-(-tokens // page_tokens), np.int32)]

    def some(count: int) -> Any:
        return rng.integers(0, VOCABULARY, count).astype(np.int32)

    # Chats of eight turns: each turn goes on from the one before, and begins a branch.
    chat = some(0)
    turn = 0
    while tree.nodes < nodes:
        chat = some(node_tokens) if turn % 8 == 0 else np.concatenate((chat, some(node_tokens)))
        tree.insert("", chat, table(len(chat)))
        tree.insert("", np.concatenate((chat, some(node_tokens))), table(len(chat) + node_tokens))
        turn += 1
    weighed = getattr(tree, "bytes", None)
    size = None if weighed is None else weighed / tree.tokens
    report: dict[str, Any] = {"nodes": tree.nodes, "tokens": tree.tokens, "bytes_per_token": size}
    half = input_len // 2
    matched, inserted = [], []
    for _ in range(repeats):
        long = some(input_len)
        tree.insert("", long, table(input_len))
        for cut in range(node_tokens, half, node_tokens):  # so that its path has as short nodes
            tree.insert("", np.concatenate((long[:cut], some(1))), table(cut + 1))
        prompt = np.concatenate((long[:half], some(input_len - half)))
        begun = time.perf_counter()
        found = tree.match("", prompt)
        middle = time.perf_counter()
        assert found.tokens == half, "the first half is held"
        tables = table(input_len)
        tables[0][: len(found.tables[0])] = found.tables[0]
        inserting = time.perf_counter()
        tree.insert("", prompt, tables)
        inserted.append(time.perf_counter() - inserting)
        matched.append(middle - begun)
    both = [one + other for one, other in zip(matched, inserted, strict=True)]
    report |= {
        "match_s": spread(matched),
        "insert_s": spread(inserted),
        "match_and_insert_s": spread(both),
    }
    return report


def _figure(values: dict[str, float]) -> str:
    median, low, high = (1e6 * values[name] for name in ("median", "p10", "p90"))
    return f"{median:,.0f} us ({low:,.0f} to {high:,.0f})"
