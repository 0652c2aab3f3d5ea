"""Other models beside an engine's own, which write for its searches."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Protocol

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.cost import ModelCost
from ockham.core.errors import ConfigError, OckhamError, TaskFailed
from ockham.core.ledger import Ledger
from ockham.core.numbers import shown
from ockham.core.probe import Probe
from ockham.core.seams import (
    Action,
    Branch,
    Companion,
    Continue,
    Finish,
    Hold,
    Observer,
    SearchState,
    Split,
    Target,
    TokenScores,
    Until,
    Write,
    Writer,
    Written,
)
from ockham.engine.checkers import all_probes, check_fits, fitting
from ockham.engine.messages import Delta, Request
from ockham.engine.named import named
from ockham.model.loading import LoadedModel, plan_model
from ockham.model.program.description import ModelDescription
from ockham.text.tokenizer import Tokenizer


class Inner(Protocol):
    """An engine, as far as this file needs one."""

    cost: ModelCost
    max_model_len: int
    vocabulary: int
    tokenizer: Tokenizer | None
    model: LoadedModel

    @property
    def has_work(self) -> bool: ...
    def take(self, request: Request, search: SearchState | None = None) -> None: ...
    def step(self) -> list[Delta]: ...
    def abort(self, request_id: str) -> list[Delta]: ...
    def drop_all(self) -> None: ...
    def close(self) -> None: ...


log = logging.getLogger("ockham.engine")

Build = Callable[[EngineConfig], Inner]
Book = Callable[[str, Ledger], None]
"""Puts what a companion has computed on the bill of the request of this id."""


def companions_of(
    config: EngineConfig,
    build: Build,
    book: Book,
    own: ModelDescription,
    target: Target,
    tokenizer: Tokenizer | None,
) -> Companions:
    """The companions of an engine, each with state for as many tokens as the engine has. Raises
    ConfigError for one that cannot be loaded, or whose tokens mean something else, and for a probe
    that reads the states of none of the models."""
    engines: dict[str, Inner] = {}
    for name, model in named("companion", "MODEL", config.companions or {}).items():
        try:
            inner = engines[name] = build(_config(config, model, target))
        except OckhamError as error:
            raise ConfigError(f"the companion {name!r}: {error}") from None
        digests = [None if each is None else each.digest for each in (tokenizer, inner.tokenizer)]
        if inner.vocabulary != target.vocabulary or digests[0] != digests[1]:
            raise ConfigError(
                f"the companion {name!r} ({shown(model)}) has another tokenizer than the model, so "
                "that its tokens mean something else; choose one of the same family."
            )
    probes = all_probes(config.probes)
    for name, probe in probes.items():
        check_fits(name, probe, [own, *(inner.model.description for inner in engines.values())])
    return Companions(engines, probes, book)


def _config(outer: EngineConfig, model: str, target: Target) -> EngineConfig:
    """The settings of a companion: the outer engine's, as far as they are not of its model.

    It does not draft, so that it stops at the very token at which it is to.
    """
    probe = EngineConfig(model=model, max_model_len=1, max_num_seqs=1)
    probed = plan_model(probe)
    probed.source.close()
    described = probed.description
    pages = -(-target.cells // outer.block_size) + target.sequences + 1
    cell_bytes = sum(each.cell_bytes for each in probed.plan.layouts(described))
    return EngineConfig(
        model=model,
        max_model_len=min(target.max_model_len, described.max_position_embeddings),
        max_num_seqs=target.sequences,
        max_num_batched_tokens=outer.max_num_batched_tokens,
        kv_cache_memory_bytes=pages * outer.block_size * cell_bytes,
        block_size=outer.block_size,
        quantization=outer.quantization,
        backend=outer.backend,
        threads=outer.threads,
        weight_cache=outer.weight_cache,
        weight_cache_bytes=outer.weight_cache_bytes,
        scheduling_policy=outer.scheduling_policy,
        enable_prefix_caching=outer.enable_prefix_caching,
        speculative_config="none",
        skip_tokenizer_init=outer.skip_tokenizer_init,
    )


class Companions:
    """The other models of an engine, by name. Each is an engine of its own in the same thread: it
    makes a step whenever the outer one does."""

    def __init__(
        self, engines: Mapping[str, Inner], probes: Mapping[str, Probe], book: Book
    ) -> None:
        self._engines, self._probes, self._book = engines, probes, book
        self._numbers = itertools.count()
        self._open: dict[str, tuple[str, Inner, Text]] = {}
        """The texts that are being written, by the inner request: the outer request's id, who
        writes, and the text."""

    def of(self, request: Request, seed: int) -> dict[str, OwnCompanion]:
        """Those that a request's search may ask."""
        return {
            name: OwnCompanion(self, inner, request, seed) for name, inner in self._engines.items()
        }

    def probes_of(self, inner: Inner) -> dict[str, Probe]:
        """The probes that read the states of a companion."""
        described = inner.model.description
        return {name: each for name, each in self._probes.items() if fitting(each, described)}

    def step(self) -> None:
        """Let each that has work make one step."""
        if self._open:  # a companion whose texts all wait would sleep
            for inner in {id(i): i for _, i, text in self._open.values() if text.busy}.values():
                try:
                    self._booked(inner.step())
                except Exception as error:
                    log.error("A companion met a fault.", exc_info=error)
                    self._drop(inner)

    @property
    def busy(self) -> bool:
        """Whether any has something to compute: one whose texts all wait has not."""
        return any(text.busy for _, _, text in self._open.values())

    def drop_all(self) -> None:
        """Give up all that they do."""
        for inner in self._engines.values():
            self._drop(inner)

    def close(self) -> None:
        """See `Engine.close`."""
        for inner in self._engines.values():
            inner.close()

    # -- for writers ---------------------------------------------------------------------------

    def begin(self, inner: Inner, outer: Request, seed: int, text: Text) -> None:
        """Let a companion begin a text after the prompt of a request. Raises InvalidRequest."""
        request_id = f"{outer.request_id}/{next(self._numbers)}"
        params = msgspec.structs.replace(
            outer.params, n=1, seed=_of_stream(seed, text.number), logprobs=None, asks=None
        )
        request = Request(
            request_id=request_id,
            prompt_token_ids=outer.prompt_token_ids,
            params=params,
            cache_salt=outer.cache_salt,
            detokenize=outer.detokenize,
        )
        inner.take(request, text)
        self._open[request_id] = (outer.request_id, inner, text)

    def end(self, request_id: str) -> None:
        """Nobody waits for what a request had its companions write."""
        for inner_id, (outer, inner, _) in list(self._open.items()):
            if outer == request_id:
                self._booked(inner.abort(inner_id))

    def end_text(self, text: Text) -> None:
        """Nobody waits for this text any more."""
        for inner_id, (_, inner, each) in list(self._open.items()):
            if each is text:
                self._booked(inner.abort(inner_id))

    def _drop(self, inner: Inner) -> None:
        """Give up all that a companion does: whoever waits for it is told."""
        inner.drop_all()
        self._open = {key: each for key, each in self._open.items() if each[1] is not inner}

    def _booked(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            if delta.finished:
                opened = self._open.pop(delta.request_id, None)
                if opened is not None and delta.ledger is not None:
                    self._book(opened[0], delta.ledger)


class OwnCompanion(Companion):
    """A companion, as the search of one request knows it."""

    def __init__(self, companions: Companions, inner: Inner, request: Request, seed: int) -> None:
        self._companions, self._inner = companions, inner
        self._request, self._seed = request, seed
        self.longest, self.cost = inner.max_model_len, inner.cost
        self.probes = companions.probes_of(inner)

    def open(self, number: int = 0, observer: Observer | None = None) -> Text:
        """See `Companion`."""
        text = Text(number, observer)
        text.begin = lambda: self._companions.begin(self._inner, self._request, self._seed, text)
        text.end = lambda: self._companions.end_text(text)
        return text


def _of_stream(seed: int, number: int) -> int:
    """The seed of a companion's text: that of the request for number 0."""
    return (seed + number * 0x9E3779B97F4A7C15) % (1 << 64)


class Text(SearchState, Writer):
    """One text that a companion writes: the search of its inner request, which goes on when it is
    told to."""

    watches: ClassVar[bool] = True
    scores: ClassVar[bool] = True
    holds: ClassVar[bool] = True

    def __init__(self, number: int, observer: Observer | None = None) -> None:
        self.number, self._observer = number, observer
        self.begin: Callable[[], object] | None = None
        """Makes the inner request; None once that is made."""
        self.end: Callable[[], None] | None = None
        """Gives the inner request up."""
        self.closed = False
        self._news: Future[None] = Future()
        """Done when there is something to go on with."""
        self._tokens: Sequence[int] = ()
        self._keep: int | None = None
        self._most: int | None = None
        self._until: Until | None = None
        self._asked: Future[Written] | None = None
        self._branch = 0
        """The number of the one that is the text now."""
        self._start = 0
        """After how many tokens of the text it went on."""

    @property
    def busy(self) -> bool:
        """Whether the companion is to go on."""
        return self._asked is not None

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return 1

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """See `SearchState`."""
        return (self._news,)

    def observer(self, branch: int) -> Observer | None:
        """See `SearchState`."""
        return self._observer

    def go_on(
        self,
        tokens: Sequence[int] = (),
        most: int | None = None,
        until: Until | None = None,
        keep: int | None = None,
    ) -> Future[Written]:
        """See `Writer`."""
        asked: Future[Written] = Future()
        if self.closed or self._asked is not None:
            raise ValueError("the text has ended, or is being written on")
        self._tokens, self._most, self._until, self._asked = tokens, most, until, asked
        self._keep = keep
        try:
            if self.begin is not None:
                begin, self.begin = self.begin, None
                begin()
        except OckhamError as error:
            self.closed = True
            asked.set_exception(error)
        else:
            self._news.set_result(None)
        return asked

    def give_up(self) -> None:
        """See `Writer`."""
        if not self.closed and self.begin is None and self.end is not None:
            self.end()

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        branch, asked = branches[self._branch], self._asked
        if asked is None:
            return []
        if self._news.done():
            self._news = Future()
            return self._take_up(branch)
        ended = branch.finish_reason
        if ended is None and not self._enough(branch):
            return []
        self._asked = None
        own = Written(branch.tokens[self._start :], self._own(branch), branch.text, ended)
        asked.set_result(own)
        return [Hold(branch.number)] if ended is None else [Finish([branch.number])]

    def close(self) -> None:
        """See `SearchState`."""
        self.closed = True
        if self._asked is not None:
            asked, self._asked = self._asked, None
            asked.set_exception(TaskFailed("a companion met a fault.", "the companion failed"))

    # -- inside --------------------------------------------------------------------------------

    def _take_up(self, branch: Branch) -> list[Action | Finish]:
        """Go on from what stays of the text, and from what others have written."""
        actions: list[Action | Finish] = []
        kept = branch.length if self._keep is None else min(self._keep, branch.length)
        if kept < branch.length:
            self._branch += 1
            actions += [Split(branch.number, [self._branch], kept), Hold(self._branch)]
        if self._tokens:
            actions.append(Write(self._branch, self._tokens))
        self._start = kept + len(self._tokens)
        return [*actions, Continue(self._branch)]

    def _enough(self, branch: Branch) -> bool:
        own = branch.length - self._start
        if own < 1:
            return False
        if self._most is not None and own >= self._most:
            return True
        return self._until is not None and self._until(branch, self._start)

    def _own(self, branch: Branch) -> TokenScores:
        own = TokenScores()
        for place in range(self._start, len(branch.scores.logprobs)):
            scores = branch.scores
            own.add(scores.logprobs[place], scores.confidences[place], scores.entropies[place])
        return own
