"""What keys lose that have fewer channels, beside keys in fewer bits, at the same bytes.

ThinK (paper 342, arXiv:2407.21018) drops the channels of old keys that the latest queries use
least. This command imitates that, and keys in int8 and int4, in the reference backend: it saves
nothing, and says what the answers and the attention would lose.

    python -m benchmarks.thin_keys lab --contexts 2

Of each context of the task of later questions (`ockham.lab.evidence.later_questions`) the first
question is read exactly. Rows after it see the keys before it in another form, but for the newest
32: so do the answer, and later questions. Values stay whole. Channels are chosen once, for each
layer and key-value head, from the last 32 queries before that: the mean of the query's square times
the mean of the key's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.kernels.ops import Attend
from ockham.kernels.reference import attend
from ockham.kernels.reference.stored import CODECS, Codec
from ockham.lab.evidence import later_questions
from ockham.lab.evidence.bench import Bench
from ockham.lab.returning import Query, ask

NEWEST = 32
"""Keys that stay whole, and queries that say which channels are used."""
WIDTHS = {"bf16": 16.0, "int8": 8.0, "int4": 4.0}
"""Bits of an element."""
SCALE_BITS = 32


class Forms:
    """Keys in one form after another, in place of the reference backend's own."""

    def __init__(self) -> None:
        self.form = "bf16"
        self.dropped = 0.0
        """The share of the channels that is."""
        self.until = 0
        """The tokens of a text whose keys have that form."""
        self.lost = self.whole = 0.0
        """Squares of what the attention's output differs by, and of that output."""
        self._queries: dict[int, list[Floats]] = {}
        self._used: dict[int, Any] = {}
        self._exact: Callable[..., Any] = attend._attend_block
        attend._attend_block = self._block

    def bits(self, width: int) -> float:
        """Bits of an element of a key, on average over all channels."""
        channels = width - round(self.dropped * width)
        scale = 0 if self.form == "bf16" else SCALE_BITS
        return (channels * WIDTHS[self.form] + scale) / width

    def begin(self, until: int) -> None:
        """A text comes next whose first `until` tokens are read exactly."""
        self.until, self._queries, self._used = until, {}, {}

    def _block(
        self,
        op: Attend,
        codec: Codec,
        view: Any,
        start: int,
        stop: int,
        keys: Floats,
        values: Floats,
        q: Floats,
        a: Floats,
        visited: Any,
        chunks: Any,
    ) -> Any:
        """As `attend._attend_block`, of rows before and after the end of what is read exactly."""
        middle = start + int(
            (view.high[start - view.start : stop - view.start] <= self.until).sum()
        )
        found = None
        if start < middle:
            own = q[max(start, middle - NEWEST) : middle]
            own = own.reshape(len(own), op.heads, op.head_dim).copy()
            self._queries.setdefault(op.layer, []).append(own)
            found = self._exact(op, codec, view, start, middle, keys, values, q, a, visited, chunks)
        if middle < stop:
            found = self._exact(op, codec, view, middle, stop, keys, values, q, a, visited, chunks)
            exact, old = a[middle:stop].copy(), self.until - NEWEST
            changed = np.concatenate((self._in_form(op, keys[:old]), keys[old:]))
            found = self._exact(
                op, codec, view, middle, stop, changed, values, q, a, visited, chunks
            )
            self.lost += float(((a[middle:stop] - exact) ** 2).sum())
            self.whole += float((exact**2).sum())
        return found

    def _in_form(self, op: Attend, keys: Floats) -> Floats:
        """Keys (n, kv_heads, width) as they would be read."""
        used = self._used.get(op.layer)
        if used is None:
            used = self._used[op.layer] = self._channels(op, keys)
        found = np.zeros_like(keys)
        for head, channels in enumerate(used):
            rows: Floats = np.ascontiguousarray(keys[:, head][:, channels])
            if self.form != "bf16":  # keys of a plane in bf16 are rounded already
                rows = CODECS[self.form].widen(CODECS[self.form].store(rows))
            found[:, head, channels] = rows
        return found

    def _channels(self, op: Attend, keys: Floats) -> list[Any]:
        """The channels of each key-value head that stay, ascending."""
        queries = np.concatenate(self._queries[op.layer])[-NEWEST:].astype(np.float64)
        by_head = (queries**2).mean(axis=0).reshape(op.kv_heads, -1, op.head_dim).mean(axis=1)
        worth = by_head * (keys.astype(np.float64) ** 2).mean(axis=0)
        count = round(self.dropped * op.head_dim)
        return [np.sort(np.argsort(own, kind="stable")[count:]) for own in worth]


def main() -> None:
    parser = argparse.ArgumentParser(description="Thin keys beside keys in fewer bits.")
    parser.add_argument("model", help="a name or a directory, as for `ockham run`")
    parser.add_argument("--contexts", type=int, default=2, help="of each task")
    parser.add_argument(
        "--forms",
        default="bf16,int8,int4,bf16-0.4,bf16-0.47,bf16-0.72,int4-0.4",
        help="types of keys, each with the share of the channels that is dropped",
    )
    given = parser.parse_args()
    config = EngineConfig(
        model=given.model, backend="reference", reuse="none", speculative_config="none"
    )
    bench = Bench(config, 1, 0)
    engine = bench.engine(max_num_batched_tokens=2048)
    asked = later_questions.conversations(bench, engine, given.contexts)
    forms = Forms()
    width = engine.state.groups[0].spec.uniform.width
    print("| keys | bits an element | question 1 right | later ones | error of attention |")
    print("|---|---|---|---|---|")
    for form in given.forms.split(","):
        forms.form, _, share = form.partition("-")
        forms.dropped = float(share or 0)
        forms.lost = forms.whole = 0.0
        scores: tuple[list[float], list[float]] = ([], [])
        for each in asked:
            for number, (tokens, right) in enumerate(each.prompts):
                forms.begin(each.first_tokens)
                most = later_questions.ANSWER_TOKENS
                query = Query(tokens, most, {}, right)
                scores[number > 0].extend(ask(engine, [query], False).scores)
        first, later = (math.fsum(own) / len(own) for own in scores)
        error = math.sqrt(forms.lost / forms.whole)
        bits = forms.bits(width)
        print(f"| {form} | {bits:.1f} | {first:.0%} | {later:.0%} | {error:.2%} |", flush=True)


if __name__ == "__main__":
    main()
