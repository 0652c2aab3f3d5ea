"""What blocks cost that stand for columns and diagonals, and what an estimate of one's own gains.

MInference (paper 368, arXiv:2407.02490) finds columns and diagonals by the last 64 queries of a
prompt, for all rows before them, key by key. The pattern `minference` finds blocks of 64 keys, by
some rows of each 64 themselves. This command says how much of the attention each form visits, with
as many pairs of a query and a key, of some rows of some texts. It saves nothing.

    python -m benchmarks.lines smollm2 --context 4096

Of columns and diagonals, a half of each is taken; the first 4 columns and the latest 64 diagonals
are among them, as in the published code.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ockham.attention.minference import recalled
from ockham.core.arrays import Doubles, Floats
from ockham.core.choices import BY_HEAD, LINES, Choice
from ockham.core.seams import Calibration, QueryBlock
from ockham.core.visits import BLOCK_KEYS
from ockham.lab.head_samples import HeadSamples
from ockham.training.calibrate import CalibrateSettings, texts_of

SHARES = {1: 1 / 8, 3: 1 / 4, 5: 1 / 2}
"""Of the pairs, by their place among those of `ockham.attention.head_recalls`."""
COLUMNS, DIAGONALS = 4, 64


class Lines(Calibration):
    """Compares the forms on the layers that it is told of."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._seen: dict[int, list[QueryBlock]] = {}
        self.found: dict[str, list[list[float]]] = {}

    def saw(self, block: QueryBlock) -> None:
        if block.layer % self._every == 0:
            self._seen.setdefault(block.layer, []).append(block)

    def text_ends(self) -> None:
        """The last block of each layer has the text's last rows."""
        for blocks in self._seen.values():
            heads = blocks[0].queries.shape[1]
            for head in range(heads):
                self._compare(blocks, head, head * blocks[0].keys.shape[1] // heads)
        self._seen.clear()

    def _compare(self, blocks: list[QueryBlock], head: int, of: int) -> None:
        last = probabilities(blocks[-1], head, of)
        choice = Choice(BY_HEAD, (True,), sinks=1, local=1, stride=16)
        for block in blocks[:-1]:
            own = probabilities(block, head, of)
            by_rule = recalled(choice, block.queries[:, head : head + 1], block.keys[:, of])
            forms = {
                "blocks, by each 16th row": [float(by_rule[LINES][at]) for at in SHARES],
                "lines, by the text's last rows": by_lines(own, last),
                "lines, by the rows themselves": by_lines(own, own),
            }
            for name, recalls in forms.items():
                self.found.setdefault(name, []).append(recalls)

    def result(self, about: Mapping[str, Any]) -> bytes:
        return b""

    def described(self) -> list[str]:
        return [
            f"| {name} | {' | '.join(f'{mean:.1%}' for mean in np.mean(found, axis=0))} |"
            for name, found in self.found.items()
        ]


def probabilities(block: QueryBlock, head: int, of: int) -> Floats:
    """Those of a query head, whose keys are those of head `of`: (64, keys)."""
    scores = block.queries[:, head] @ block.keys[:, of].T
    first = len(block.keys) - BLOCK_KEYS
    scores[np.arange(len(block.keys)) > first + np.arange(BLOCK_KEYS)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Floats = weights / weights.sum(axis=1, keepdims=True)
    return found


def by_lines(rows: Floats, estimate: Floats) -> list[float]:
    """What the columns and diagonals visit of `rows` that weigh most in `estimate`, at each share
    of the pairs. Both are probabilities of 64 rows, of which the last sees all keys."""
    keys, end = rows.shape[1], estimate.shape[1]
    columns: Doubles = estimate.sum(axis=0, dtype=np.float64)[:keys]
    diagonals: Doubles = np.zeros(end)
    for row, of_row in enumerate(estimate):
        own = end - BLOCK_KEYS + row
        diagonals[: own + 1] += of_row[own::-1]
    columns[:COLUMNS] = diagonals[:DIAGONALS] = np.inf
    offsets = keys - BLOCK_KEYS + np.arange(BLOCK_KEYS)[:, None] - np.arange(keys)
    found = []
    for share in SHARES.values():
        half = int(share * keys / 2)
        column = np.zeros(keys, np.bool_)
        column[np.argsort(-columns)[: max(COLUMNS, half)]] = True
        diagonal = np.zeros(end, np.bool_)
        diagonal[np.argsort(-diagonals[:keys])[: max(DIAGONALS, half)]] = True
        visited = column | (diagonal[np.maximum(offsets, 0)] & (offsets >= 0))
        found.append(float((rows * visited).sum(axis=1).mean()))
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="lab")
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--every", type=int, default=5, help="one layer in so many")
    given = parser.parse_args()
    settings = CalibrateSettings(
        "minference", given.model, Path("unwritten"), (), given.texts, given.context
    )
    texts, lines = texts_of(settings), Lines(given.every)
    samples = HeadSamples(given.model, max(map(len, texts)))
    for text in texts:
        samples.show([text], lines)
        lines.text_ends()
    samples.close()
    print(f"| | {' | '.join(f'{share:.1%} of the pairs' for share in SHARES.values())} |")
    print(f"|---|{'---|' * len(SHARES)}")
    for line in lines.described():
        print(line, flush=True)


if __name__ == "__main__":
    main()
