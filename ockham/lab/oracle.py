"""The best way through a model for each token: which widths its feed-forwards should have had.

Duo-LLM (Alizadeh et al. 2024, arXiv:2410.10846) asks this of a model whose feed-forwards are small,
big or skipped. The context of a token is computed whole, and the token itself on every path, or, of
more paths than can be tried, on those that a greedy search comes by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from random import Random

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.cost import FEED_FORWARD
from ockham.core.errors import ConfigError
from ockham.core.rows import Branch, build_step
from ockham.core.sparing import ALL, SKIPPED, RoutingRule, Sparing
from ockham.core.step import NO_ROWS, Step, Tables
from ockham.engine.engine import Engine
from ockham.lab.tasks import items
from ockham.model.checkpoint.gate_files import read_routers
from ockham.model.loading import LoadedModel

MOST_PATHS = 10_000
"""Of so many, all are tried."""
ROWS = 256
"""Paths that are tried in one step."""


class Way(msgspec.Struct, frozen=True):
    """How tokens were computed, on average: with which share of the neurons, how improbable the
    text's next token was, and how far the distribution was from that of the whole model."""

    share: float
    nats: float
    kl: float


class Oracle(msgspec.Struct, frozen=True):
    """What a search for the best paths of tokens found. All but `whole` cost as many neurons as
    `routed`, on average over the tokens."""

    tokens: int
    paths: int
    """That were tried for each token, on average."""
    exhaustive: bool
    """Whether those are all that there are."""
    whole: Way
    routed: Way
    fixed: Way | None
    """The path that is best for all tokens together; None where not all were tried."""
    best: Way
    """The best path of each token, for who knows the next one."""
    nearest: Way
    """The path of each token that is nearest to the whole model."""
    agreement: float
    """The share of the choices in which the router's path is that of `best`."""


class Tried(msgspec.Struct, frozen=True):
    """The paths of one token: (P, layers) choices, and of each its share of the neurons, the nats
    of the next token, and the KL from the whole model."""

    paths: Ints
    shares: Doubles
    nats: Doubles
    kl: Doubles
    routed: Ints  # (layers,)


class Paths:
    """Runs tokens of a text on chosen paths through a model."""

    def __init__(self, model: LoadedModel, rule: RoutingRule, longest: int) -> None:
        """`rule` has the widths that there are, and the routers. Raises ConfigError where the model
        has layers without neurons of which some could run alone."""
        self._program, self._layouts = model.program, model.layouts
        planes = model.backend.allocate(model.layouts)
        self._executor = model.backend.bind(model.program, planes)
        sublayers = self._program.sublayers()
        layers = rule.widths.shape[0]
        ranges = [sublayers.get((layer, FEED_FORWARD), range(0)) for layer in range(layers)]
        self._starts = np.array([each.start for each in ranges], np.int32)
        self._ends = np.array([each.stop for each in ranges], np.int32)
        self._neurons = np.array(
            [max((self._program.ops[n].neurons for n in each), default=0) for each in ranges]
        )
        if not self._neurons.all():
            raise ConfigError("the oracle is for models all of whose layers have feed-forwards.")
        self._rule, self._longest = rule, longest
        self._page_tokens = model.layouts[0].page_tokens
        pages = -(-(longest + ROWS) // self._page_tokens)
        if any(layout.pages < pages for layout in model.layouts):
            raise ConfigError(
                f"the model's state has no room for {longest + ROWS} tokens; give it more memory."
            )
        table = np.arange(pages, dtype=np.int32)
        starts = np.array([0, pages], np.int32)
        self._tables = (Tables(table, starts),) * len(model.layouts)
        ran = np.where(rule.widths == SKIPPED, 0, rule.widths)
        ran = np.where(rule.widths == ALL, self._neurons[:, None], ran)
        self.costs: Doubles = ran / self._neurons.sum()
        """(layers, choices) shares of all neurons."""

    @property
    def layers(self) -> int:
        return len(self.costs)

    @property
    def choices(self) -> int:
        return len(self.costs[0])

    def read(self, tokens: Sequence[int]) -> None:
        """Compute the context that is read next, whole."""
        places = np.arange(len(tokens), dtype=np.int32)
        for first in range(0, len(tokens), ROWS):
            own = places[first : first + ROWS]
            self._run(self._step(np.array(tokens, np.int32)[own], own, ()))

    def tried(self, tokens: Sequence[int], place: int) -> Tried:
        """The paths of the token in a place of the context that was read."""
        whole = np.full(self.layers, self._widest(), np.int32)
        step = self._of_token(tokens[place], place, 1)
        step.sparing = self._sparing(np.zeros(1, np.int32))
        _, ran = self._run(step)
        routed = self._choices_of(ran[:, 0])
        expected = _log_softmax(self._logits(tokens[place], place, whole[None]))[0]
        found = [self._measured(tokens, place, each, expected) for each in self._sought(whole)]
        if not found:
            found = list(self._greedy(tokens, place, whole, expected))
        found.append(self._measured(tokens, place, np.stack([routed, whole]), expected))
        paths, nats, kl = (np.concatenate(each) for each in zip(*found, strict=True))
        shares = self.costs[np.arange(self.layers), paths].sum(axis=1)
        return Tried(paths, shares, nats, kl, routed)

    def _widest(self) -> int:
        return int(self.costs.sum(axis=0).argmax())

    def _sought(self, whole: Ints) -> Iterator[Ints]:
        """All paths, in parts; none where there are too many."""
        if self.choices**self.layers > MOST_PATHS:
            return
        every = np.array(list(product(range(self.choices), repeat=self.layers)), np.int32)
        for first in range(0, len(every), ROWS):
            yield every[first : first + ROWS]

    def _greedy(
        self, tokens: Sequence[int], place: int, whole: Ints, expected: Floats
    ) -> Iterator[tuple[Ints, Doubles, Doubles]]:
        """From the whole model on, the change of one layer's choice that costs fewer neurons and
        leaves the next token most probable, until none costs fewer."""
        path = whole
        while True:
            changed = []
            for layer, choice in product(range(self.layers), range(self.choices)):
                if self.costs[layer, choice] < self.costs[layer, path[layer]]:
                    changed.append(path.copy())
                    changed[-1][layer] = choice
            if not changed:
                return
            found = []
            for first in range(0, len(changed), ROWS):
                part = np.stack(changed[first : first + ROWS])
                found.append(self._measured(tokens, place, part, expected))
            yield from found
            nats = np.concatenate([each[1] for each in found])
            path = changed[int(nats.argmin())]

    def _measured(
        self, tokens: Sequence[int], place: int, paths: Ints, expected: Floats
    ) -> tuple[Ints, Doubles, Doubles]:
        """Paths, the nats of the next token on each, and the KL from the whole model's
        distribution."""
        found = _log_softmax(self._logits(tokens[place], place, paths))
        kl = (np.exp(expected) * (expected - found)).sum(axis=1, dtype=np.float64)
        return paths, -found[:, tokens[place + 1]].astype(np.float64), np.maximum(kl, 0.0)

    def _logits(self, token: int, place: int, paths: Ints) -> Floats:
        step = self._of_token(token, place, len(paths))
        step.sparing = self._sparing(np.full(len(paths), -1, np.int32))
        told = self._rule.widths[np.arange(self.layers), paths].T
        step.sparing.told = np.ascontiguousarray(told, np.int32)
        return self._run(step)[0]

    def _choices_of(self, ran: Ints) -> Ints:
        """The choices that are as wide as what a row ran."""
        neurons = np.where(ran == SKIPPED, 0, np.where(ran == ALL, self._neurons, ran))
        costs = neurons / self._neurons.sum()
        found: Ints = np.abs(self.costs - costs[:, None]).argmin(axis=1).astype(np.int32)
        return found

    def _of_token(self, token: int, place: int, count: int) -> Step:
        """Rows of one token, which see what is before it, and themselves."""
        places = np.arange(self._longest, self._longest + count, dtype=np.int32)
        branches = [Branch(row, place, ()) for row in range(count)]
        rows = np.arange(count, dtype=np.int32)
        return self._step(np.full(count, token, np.int32), places, branches, rows)

    def _step(
        self, ids: Ints, places: Ints, branches: Sequence[Branch], wanted: Ints = NO_ROWS
    ) -> Step:
        return build_step(
            ids,
            places,
            np.zeros(len(ids), np.int32),
            self._tables,
            self._page_tokens,
            branches=branches,
            wants_logits=wanted,
        )

    def _sparing(self, of_rows: Ints) -> Sparing:
        return Sparing.of(of_rows, [self._rule], self._starts, self._ends)

    def _run(self, step: Step) -> tuple[Floats, Ints]:
        run = self._executor.begin(step)
        self._executor.run(run, 0, len(self._program.ops))
        output = self._executor.finish(run)
        return output.logits, output.spared


CONTEXT, TEXTS = 192, 8
"""Of so many texts, the first tokens are read."""


def of_model(name: str, router: Path, count: int, seed: int) -> Oracle:
    """The best paths of `count` tokens of held-out code and prose, for a model and routers of it.
    Raises ConfigError where they do not belong together."""
    routers = read_routers(router)
    engine = Engine(EngineConfig(model=name, reuse="none", speculative_config="none"))
    tokenizer, model = engine.tokenizer, engine.gates.model
    if tokenizer is None:
        raise ConfigError(f"{name} has no tokenizer, and the oracle reads texts.")
    if routers.weights.shape[2] != model.hidden_size:
        raise ConfigError(
            f"{router} is for a model of width {routers.weights.shape[2]}, and {name} has "
            f"{model.hidden_size}; train routers for it."
        )
    try:
        rule = routers.rule(model.neurons)
    except ValueError as error:
        raise ConfigError(f"{router}: {error}") from None
    texts = [
        tokenizer.encode(item.text or "")[:CONTEXT]
        for task in ("code", "prose")
        for item in items(task, seed, TEXTS // 2)
    ]
    return seek(Paths(engine.model, rule, CONTEXT), texts, count, seed)


def told(found: Oracle) -> list[str]:
    """What was found, in words."""
    how = "all paths there are" if found.exhaustive else "those that a greedy search came by"
    ways = {
        "the whole model": found.whole,
        "the router": found.routed,
        "the best path for all tokens": found.fixed,
        "the best path of each token, knowing the next one": found.best,
        "the path of each token that is nearest to the whole model": found.nearest,
    }
    return [
        f"{found.tokens} token{'s' * (found.tokens != 1)}, {found.paths:,} paths each: {how}",
        *(
            f"{name}: {way.share:.1%} of the neurons, {way.nats:.4f} nats for the next token, KL "
            f"{way.kl:.4f} from the whole model"
            for name, way in ways.items()
            if way is not None
        ),
        f"the router chooses as the best path of each token in {found.agreement:.1%} of the layers",
    ]


def seek(paths: Paths, texts: Sequence[Sequence[int]], count: int, seed: int) -> Oracle:
    """The best paths of `count` tokens of texts, evenly shared out among them."""
    rng, found = Random(f"oracle {seed}"), []
    for number, text in enumerate(texts):
        own = count * (number + 1) // len(texts) - count * number // len(texts)
        paths.read(text)
        for place in sorted(rng.sample(range(len(text) // 4, len(text) - 1), own)):
            found.append(paths.tried(text, place))
    return summed_up(found, paths.choices**paths.layers <= MOST_PATHS)


def summed_up(found: Sequence[Tried], exhaustive: bool) -> Oracle:
    """What the tried paths of tokens say, whose last two are the router's and the whole model's."""
    routed = _way(found, [len(each.paths) - 2 for each in found])
    best = _at_share(found, [each.nats for each in found], routed.share)
    nearest = _at_share(found, [each.kl for each in found], routed.share)
    agreement = np.mean(
        [(each.paths[at] == each.routed).mean() for each, at in zip(found, best, strict=True)]
    )
    return Oracle(
        tokens=len(found),
        paths=round(float(np.mean([len(each.paths) - 2 for each in found]))),
        exhaustive=exhaustive,
        whole=_way(found, [len(each.paths) - 1 for each in found]),
        routed=routed,
        fixed=_fixed(found, routed.share) if exhaustive else None,
        best=_way(found, best),
        nearest=_way(found, nearest),
        agreement=float(agreement),
    )


def _way(found: Sequence[Tried], chosen: Sequence[int]) -> Way:
    pairs = list(zip(found, chosen, strict=True))
    return Way(
        float(np.mean([each.shares[at] for each, at in pairs])),
        float(np.mean([each.nats[at] for each, at in pairs])),
        float(np.mean([each.kl[at] for each, at in pairs])),
    )


def _at_share(found: Sequence[Tried], losses: Sequence[Doubles], share: float) -> list[int]:
    """The path of each token for which the sum of the losses is least, with at most this mean share
    of the neurons: those that are least in loss + price * share, for the lowest such price."""
    low, high = 0.0, 1e4
    for _ in range(60):
        price = (low + high) / 2
        chosen = _cheapest(found, losses, price)
        if np.mean([each.shares[at] for each, at in zip(found, chosen, strict=True)]) <= share:
            high = price
        else:
            low = price
    return _cheapest(found, losses, high)


def _cheapest(found: Sequence[Tried], losses: Sequence[Doubles], price: float) -> list[int]:
    return [
        int((loss + price * each.shares).argmin()) for each, loss in zip(found, losses, strict=True)
    ]


def _fixed(found: Sequence[Tried], share: float) -> Way:
    """The path that is best for all tokens; all have the same ones, in the same order."""
    fits = found[0].shares[:-2] <= share + 1e-9
    nats = np.mean([each.nats[:-2] for each in found], axis=0)
    at = int(np.where(fits, nats, np.inf).argmin())
    return _way(found, [at] * len(found))


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
