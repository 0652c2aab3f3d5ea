"""How much attention is on the blocks that each chooser of keys would read, as many of each.

    python -m benchmarks.key_choosers [--model lab] [--texts 4] [--tokens 1600] [--share 0.15]

A model reads texts with full attention. For some of its queries, each way of choosing picks as many
blocks of 64 keys, beside the first and the latest two. Told is the share of the softmax that is on
what it picked: the mean over the query heads, of which those of a key-value head choose together.
Codebooks are fitted to other texts of the same kind. Beside the choosers of Ockham stand

- `a2ats, best`: looked up alike, but a block is as good as its best key, as for `quest` and `scan`;
- `a2ats, plain`: the codebook is fitted to keys, and not to scores;
- `a2ats, unrotated`: as A2ATS does it, keys are coded before their rotation, and scored as if all
  were `--distance` tokens behind the query;
- `best key` and `mass`: the exact scores and the exact attention of the blocks; `chance`: any.

The first two layers are left out, and queries that see no more blocks than are picked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from ockham.attention.key_books import KeyBooks
from ockham.core.arrays import Doubles, Floats
from ockham.core.seams import Calibration, QueryBlock
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.ops import AttentionInput
from ockham.kernels.reference.choosing import bounds, codes, lookups
from ockham.lab.head_samples import HeadSamples
from ockham.lab.tasks import TASKS
from ockham.lab.tasks.english import write_report
from ockham.model.checkpoint.codebook_files import Codebooks
from ockham.model.hub import BUILT_IN, resolve
from ockham.text.tokenizer import Tokenizer

LISTS = "tokens=2000"
"""Of the lists that the lab model reads: no more of them is taken."""
ROWS = (13, 63)
"""Of each query block, which queries choose."""


class Blocks(Calibration):
    """Keeps what it is shown: a `Calibration`."""

    def __init__(self) -> None:
        self.found: list[QueryBlock] = []

    def saw(self, block: QueryBlock) -> None:
        """See `Calibration`."""
        self.found.append(block)

    def result(self, about: Mapping[str, Any]) -> bytes:
        """See `Calibration`."""
        raise NotImplementedError("nothing is written of these.")

    def described(self) -> list[str]:
        """See `Calibration`."""
        return []


def turned(x: Floats, places: Doubles, frequencies: Floats) -> Floats:
    """Rows (n, ..., d) rotated on by so many places."""
    angles = (places[:, None] * frequencies).reshape(len(x), *[1] * (x.ndim - 2), -1)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    one, other = np.split(x, 2, axis=-1)
    found: Floats = np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return found


def moved(block: QueryBlock, distance: int, frequencies: Floats) -> QueryBlock:
    """Keys as they are before their rotation, and queries as if they stood so far behind them."""
    places = np.arange(len(block.keys), dtype=np.float64)
    queries = turned(block.queries, distance - places[-len(block.queries) :], frequencies)
    return QueryBlock(block.layer, queries, turned(block.keys, -places, frequencies))


def plain(block: QueryBlock) -> QueryBlock:
    """With queries that look in all directions alike."""
    width = block.keys.shape[-1]
    rows = np.tile(np.eye(width, dtype=np.float32), (BLOCK_KEYS // width + 1, 1))[:BLOCK_KEYS]
    shape = block.queries.shape
    return QueryBlock(block.layer, np.broadcast_to(rows[:, None], shape).copy(), block.keys)


def fitted(blocks: Sequence[QueryBlock]) -> Codebooks:
    books = KeyBooks()
    for block in blocks:
        books.saw(block)
    return books.fit()


def best(scores: Floats, size: int) -> Floats:
    found: Floats = scores.reshape(len(scores), -1, size).max(axis=-1)
    return found


def looked_up(queries: Floats, keys: Floats, book: Floats) -> Floats:
    """The looked-up score with the best key of each block."""
    width = keys.shape[-1]
    own = (keys @ book[:, width : 2 * width].T - book[:, -1]).argmax(axis=-1)
    return best((queries @ book[:, :width].T)[:, own], BLOCK_KEYS)


def share_of(mass: Floats, scores: Floats, budget: int) -> float:
    """The attention on the blocks that scores (heads, blocks) choose, the first and the latest two
    among them."""
    own = mass.shape[1] - 1
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).sum(axis=0)[1 : own - 1]
    picked = 1 + np.argsort(-weights, kind="stable")[: budget - 3]
    return float(mass[:, [0, own - 1, own, *picked.tolist()]].sum(axis=1).mean())


def texts_of(model: str, count: int, tokens: int, seed: int) -> list[list[int]]:
    """Lists of facts for the lab model, cut to so many tokens; reports in English for others."""
    tokenizer, rng = Tokenizer(resolve(model)), Random(seed)
    found = []
    for number in range(count):
        if resolve(model) == BUILT_IN.get("lab"):
            item = TASKS["recall"].item(seed, number, "train", level=LISTS)
            text = tokenizer.apply_chat_template([dict(each) for each in item.messages])
        else:
            text = write_report(rng, tokens, 4, lambda each: len(tokenizer.encode(each))).text
        found.append(tokenizer.encode(text, add_special_tokens=False)[:tokens])
    return found


def choosers_of(
    fitted_to: Sequence[QueryBlock], distance: int, frequencies: Floats
) -> dict[str, Callable[[QueryBlock, int, int], Floats]]:
    """By name, the scores (heads, blocks) of a row of a query block with a key-value head."""

    def own(block: QueryBlock, head: int, row: int) -> tuple[Floats, Floats]:
        heads = block.keys.shape[1]
        queries = block.queries[row].reshape(heads, -1, block.keys.shape[2])[head]
        whole = (len(block.keys) // BLOCK_KEYS - 1) * BLOCK_KEYS
        return queries, block.keys[:whole, head]

    def by_group(estimate: Callable[[Floats, Floats], Floats]) -> Callable[..., Floats]:
        def scores(block: QueryBlock, head: int, row: int) -> Floats:
            queries, keys = own(block, head, row)
            return best(estimate(queries, keys.reshape(-1, 16, keys.shape[1])), 4)

        return scores

    def by_book(books: Codebooks, estimate: Callable[..., Floats]) -> Callable[..., Floats]:
        entries = dict(zip(books.layers, books.entries(books.layers), strict=True))

        def scores(block: QueryBlock, head: int, row: int) -> Floats:
            return estimate(*own(block, head, row), entries[block.layer][head])

        return scores

    def best_key(block: QueryBlock, head: int, row: int) -> Floats:
        queries, keys = own(block, head, row)
        return best(queries @ keys.T, BLOCK_KEYS)

    scores_of = fitted(fitted_to)
    unrotated = by_book(fitted([moved(each, distance, frequencies) for each in fitted_to]), lookups)
    return {
        "best key": best_key,
        "quest": by_group(bounds),
        "scan": by_group(codes),
        "a2ats": by_book(scores_of, lookups),
        "a2ats, best": by_book(scores_of, looked_up),
        "a2ats, plain": by_book(fitted([plain(each) for each in fitted_to]), lookups),
        "a2ats, unrotated": lambda block, head, row: unrotated(
            moved(block, distance, frequencies), head, row
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1600)
    parser.add_argument("--share", type=float, default=0.15)
    parser.add_argument("--distance", type=int, default=2048)
    parser.add_argument("--every", type=int, default=1, help="only every so many-th layer")
    chosen = parser.parse_args()
    read, asked = Blocks(), Blocks()
    samples = HeadSamples(str(resolve(chosen.model)), chosen.tokens)
    try:
        operations = samples._engine.model.program.ops
        ropes = [op.rope for op in operations if isinstance(op, AttentionInput)]
        samples.show(texts_of(chosen.model, chosen.texts, chosen.tokens, 1), read)
        samples.show(texts_of(chosen.model, max(1, chosen.texts // 2), chosen.tokens, 2), asked)
    finally:
        samples.close()
    assert ropes[0] is not None, "only models with a rotary embedding are compared"
    frequencies = np.asarray(ropes[0].inverse_frequencies)
    layers = sorted({each.layer for each in read.found})[2 :: chosen.every]
    shown = [each for each in read.found if each.layer in layers]
    ways = choosers_of(shown, chosen.distance, frequencies)
    rng = np.random.default_rng(0)
    shares: dict[str, list[float]] = {}
    for block in asked.found:
        count = len(block.keys) // BLOCK_KEYS
        budget = max(4, int(np.ceil(chosen.share * count)))
        if block.layer not in layers or count <= budget:
            continue
        heads = block.keys.shape[1]
        for row in ROWS:
            seen = len(block.keys) - BLOCK_KEYS + row + 1
            by_head = block.queries[row].reshape(heads, -1, block.keys.shape[2])
            for head, queries in enumerate(by_head):
                exact = queries @ block.keys[:seen, head].T
                weights = np.exp(exact - exact.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                padded = np.pad(weights, ((0, 0), (0, count * BLOCK_KEYS - seen)))
                mass = padded.reshape(len(queries), count, BLOCK_KEYS).sum(axis=2)
                found = {name: way(block, head, row) for name, way in ways.items()}
                found["mass"] = np.log(mass[:, :-1] + np.float32(1e-30))
                found["chance"] = rng.standard_normal((len(queries), count - 1), np.float32)
                for name, scores in found.items():
                    shares.setdefault(name, []).append(share_of(mass, scores, budget))
    if not shares:
        raise SystemExit("no text is long enough to leave blocks out; raise --tokens.")
    print(f"{chosen.share:.0%} of the blocks, {len(shares['mass'])} rows and heads")
    for name, each in sorted(shares.items(), key=lambda pair: -float(np.mean(pair[1]))):
        print(f"{name:18}{np.mean(each):8.1%}   a tenth of them below {np.quantile(each, 0.1):.1%}")


if __name__ == "__main__":
    main()
