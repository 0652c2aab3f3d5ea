"""A process that serves models with layers of each kind over stores on disk, until it is killed.

What it does is drawn: requests arrive that share prefixes or go on from what was answered before,
sequences are preempted, state is crowded out, of some layers alone, and requests leave as bytes for
another process. It says all of it, a line each; see `test_lives`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec

from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from tests.helpers.gpt_oss import tiny_gpt_oss
from tests.helpers.serving import make_engine
from tests.helpers.tiny import (
    tiny_granite_hybrid,
    tiny_latent,
    tiny_lfm2,
    tiny_matmul_free,
    tiny_qwen3_5,
)

MODELS: dict[str, Callable[[Path], Path]] = {
    "short convolution": lambda path: tiny_lfm2(path, length=11),
    "delta rule": tiny_qwen3_5,
    "state space": tiny_granite_hybrid,
    "linear recurrence": tiny_matmul_free,
    "latent rows": lambda path: tiny_latent(path, hidden_size=64),
    "sinks": lambda path: tiny_gpt_oss(path, window=20),
}
VOCABULARY = 97
MOST_LIVE = 4
"""Requests at a time of each model."""
PAGES = 60
"""Of the pool: less than that many requests take, so that it runs out, too."""
STORED = 30
"""Pages, each with a checkpoint, that disk and memory have room for."""


class Line(msgspec.Struct, omit_defaults=True):
    """What happened to a request of a model: it was taken, something was said of it, or it left."""

    kind: str
    taken: Request | None = None
    said: Delta | None = None
    moved: bytes = b""


class Last(msgspec.Struct):
    """Of a process that was not killed: pages that came from disk or memory, of each model, and
    what the stores held that was no good."""

    fetched: dict[str, int]
    refused: int


def crowded(directory: Path, kind: str) -> Engine:
    """Over the model's store on disk, which others may have left."""
    values = {"block_size": 8, "max_model_len": 200, "max_num_batched_tokens": 40}
    page_bytes = sum(each.page_bytes for each in alone(directory, kind).model.layouts)
    engine = make_engine(
        directory / kind,
        **values,
        max_num_seqs=MOST_LIVE,
        checkpoint_tokens=24,
        kv_cache_memory_bytes=PAGES * page_bytes,
        kv_store=str(directory / f"{kind} store"),
        kv_store_bytes=2 * STORED * page_bytes,
        swap_space=STORED * page_bytes / (1 << 30),
    )
    engine.pace.note = lambda *_: None  # type: ignore[method-assign]  # what is held is always read
    return engine


def alone(directory: Path, kind: str) -> Engine:
    """Whose answers are the only right ones."""
    return make_engine(
        directory / kind,
        block_size=8,
        max_model_len=200,
        threads=1,
        reuse="none",
        speculative_config="none",
    )


class Life:
    """The models of one process, and what happens to their requests. `name` is that of the life."""

    def __init__(self, directory: Path, name: str, moved: list[tuple[str, bytes]]) -> None:
        self._engines = {kind: crowded(directory, kind) for kind in MODELS}
        self._name, self._random, self._count = name, Random(name), 0
        self._live: dict[str, dict[str, Request | None]] = {kind: {} for kind in MODELS}
        self._texts: dict[str, list[list[int]]] = {kind: [] for kind in MODELS}
        """What was said before, with its prompt."""
        for kind, data in moved:
            self._live[kind][self._engines[kind].import_request(data)] = None

    def go_on(self, turns: int) -> None:
        for _ in range(turns):
            kind = self._random.choice([*MODELS])
            engine, live = self._engines[kind], self._live[kind]
            self._random.choice(
                [self._take] * 5 + [self._preempt, self._crowd_out, self._release, self._move]
            )(kind)
            for _ in range(self._random.randint(1, 8) if live else 0):
                self._step(kind)
            engine.check_integrity()

    def end(self) -> None:
        """Finish what was begun."""
        fetched, refused = {}, 0
        for kind, engine in self._engines.items():
            while engine.has_work:
                self._step(kind)
            engine.check_integrity()
            stats = engine.stats()
            assert stats.pages_used == 0
            fetched[kind] = stats.tiers.fetched
            refused += stats.tiers.refused
            engine.close()
        print(msgspec.json.encode(Last(fetched, refused)).decode(), flush=True)

    def _take(self, kind: str) -> None:
        rng, live = self._random, self._live[kind]
        if len(live) >= 2 * MOST_LIVE:
            return
        self._count += 1
        begin = Random(rng.randrange(2)).choices(range(2, VOCABULARY), k=150)
        prompt = begin[: rng.choice([rng.randint(1, 150), 64, 101, 150])]
        if self._texts[kind] and rng.random() < 0.4:
            prompt = [*rng.choice(self._texts[kind][-5:])[:150], *begin[:3]]
        request = Request(
            request_id=f"{self._name}-{self._count}",
            prompt_token_ids=prompt,
            params=SamplingParams(
                temperature=rng.choice([0.0, 0.9]),
                seed=rng.randrange(9),
                max_tokens=rng.randint(1, 16),
                n=rng.choice([1, 1, 1, 2]),
                logprobs=rng.choice([None, 2]),
                ignore_eos=True,
            ),
            detokenize=False,
        )
        live[request.request_id] = request
        self._say(Line(kind, taken=request))
        self._engines[kind].take(request)

    def _preempt(self, kind: str) -> None:
        scheduler = self._engines[kind].scheduler
        if scheduler.running:
            scheduler.preempt(self._random.choice(scheduler.running))

    def _crowd_out(self, kind: str) -> None:
        state = self._engines[kind].state
        assert state.reclaim is not None
        state.reclaim([layout.pages for layout in state.groups])

    def _release(self, kind: str) -> None:
        """The checkpoints alone, or where there are none what a window sees."""
        state = self._engines[kind].state
        groups = state.apart or state.sliding or (0,)
        assert state.reclaim is not None
        state.reclaim([each.pages if g in groups else 0 for g, each in enumerate(state.groups)])

    def _move(self, kind: str) -> None:
        live = self._live[kind]
        if live:
            name = self._random.choice(sorted(live))
            self._say(Line(kind, moved=self._engines[kind].export_request(name)))
            del live[name]

    def _step(self, kind: str) -> None:
        live = self._live[kind]
        for delta in self._engines[kind].step():
            self._say(Line(kind, said=delta))
            if not delta.finished:
                continue
            if (request := live.pop(delta.request_id)) is not None:
                self._texts[kind].append(request.prompt_token_ids)

    @staticmethod
    def _say(line: Line) -> None:
        print(msgspec.json.encode(line).decode(), flush=True)


if __name__ == "__main__":
    _, where, called, turns = sys.argv
    came = msgspec.json.decode(sys.stdin.buffer.read(), type=list[tuple[str, bytes]])
    life = Life(Path(where), called, came)
    life.go_on(int(turns) or sys.maxsize)
    life.end()
