"""Draft with a smaller model of the same vocabulary."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Draft, DraftStream, Floats, Ints, SmallModel, Wish
from ockham.core.speculative import SpeculativeConfig
from ockham.kernels.sampling import Draw

_EDGES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)
_PRIOR = (0.05, 0.12, 0.22, 0.35, 0.5, 0.65, 0.78, 0.88, 0.95)
"""Of a token that the draft model gives a probability between two edges, what is accepted at first;
then of its second choice, of which the same is thought."""
_BELIEVED = 0.1
"""How much of the time that a drafted token takes is believed at once."""


@register("drafter", "draft_model", exact=True, books=("draft_model",), paper="101")
class DraftModel:
    """What a smaller model would say next, for as long as it is likely to be right.

    The draft model reads what the target reads and has a state of its own; all sequences draft in
    the same steps of it. A draft ends where its chance of being accepted, learned for each degree
    of the draft model's own certainty (SpecDec++, paper 101, ends it by a trained head), pays
    neither for verifying nor for drafting one more token. Sampled sequences are drafted with the
    noise that the target will draw with. Where it pays, the second choice is a leaf beside the
    first, as in trees of drafts without replacement (RSD, paper 48).
    """

    name: ClassVar[str] = "draft_model"
    automatic: ClassVar[bool] = False
    needs_model: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = _PRIOR + _PRIOR

    def __init__(self, config: SpeculativeConfig) -> None:
        if config.model is None:
            raise ConfigError(
                'the method "draft_model" needs a "model": {"method": "draft_model", "model": '
                '"lab-drafter"}.'
            )
        self._name = config.model
        self._token_s = 0.0
        self.reading_s = 0.0

    def attach(self, load: Callable[[str], SmallModel]) -> None:
        """See `JointDrafter`."""
        self.model = load(self._name)

    def open(self, salt: str) -> ModelStream:
        """See `Drafter`. Streams share nothing but the steps that they are computed in."""
        return ModelStream(self.model)

    def propose_all(
        self, streams: Sequence[DraftStream], wishes: Sequence[Wish], worth: float, token_s: float
    ) -> list[Draft | None]:
        """See `JointDrafter`."""
        began = time.perf_counter()
        making = [
            _Making(stream, wish)
            for stream, wish in zip(streams, wishes, strict=True)
            if isinstance(stream, ModelStream) and wish.most > 0
        ]
        active = [each for each in making if each.position + each.wish.most < self.model.longest]
        logits, active = self._catch_up(active)
        self.reading_s = time.perf_counter() - began
        while active:
            self._choose(active, logits, worth)
            active = [each for each in active if each.goes_on]
            if sum(each.chance for each in active) * token_s <= self._token_s:
                break
            began = time.perf_counter()
            active = [each for each in active if each.stream.reserve(1)]
            if not active:
                break
            logits = self._run([(each.stream, [each.tokens[each.last]]) for each in active])
            for each in active:
                each.stream.drafted += 1
            took_s = time.perf_counter() - began
            self._token_s += (_BELIEVED if self._token_s else 1.0) * (took_s - self._token_s)
        drafts = {id(each.stream): each.draft() for each in making}
        return [drafts.get(id(stream)) for stream in streams]

    # -- inside --------------------------------------------------------------------------------

    def _catch_up(self, active: list[_Making]) -> tuple[Floats, list[_Making]]:
        """Compute what the streams have not read yet; the logits after the last token of each of
        those that the pool has room for."""
        for each in active:
            each.stream.drop_drafted()
        able = [each for each in active if each.stream.reserve(len(each.stream.unread))]
        left = list(able)
        rows: dict[int, Floats] = {}
        while left:
            chunks, room = [], self.model.most_rows
            for each in left:
                if room:
                    tokens = each.stream.unread[:room]
                    chunks.append((each, tokens))
                    room -= len(tokens)
            logits = self._run([(each.stream, tokens) for each, tokens in chunks])
            for row, (each, tokens) in enumerate(chunks):
                each.stream.unread = each.stream.unread[len(tokens) :]
                rows[id(each)] = logits[row]
            left = [each for each in left if each.stream.unread]
        if not able:
            return np.empty((0, 0), np.float32), able
        return np.stack([rows[id(each)] for each in able]), able

    def _choose(self, active: list[_Making], logits: Floats, worth: float) -> None:
        """Add the next token of each draft, and its second choice if that is worth a row."""
        noisy = [i for i, each in enumerate(active) if each.wish.noise is not None]
        drawn = self.model.sample(
            logits,
            [
                Draw(i, noise.params, noise.seed, noise.stream, active[i].position)
                for i in noisy
                if (noise := active[i].wish.noise) is not None
            ],
        )
        drawn_of = dict(zip(noisy, drawn, strict=True))
        largest = logits.max(axis=1)
        sums = np.exp(logits - largest[:, None]).sum(axis=1)
        for i, each in enumerate(active):
            token = drawn_of.get(i)
            first = int(logits[i].argmax()) if token is None else token
            each.add(first, float(np.exp(logits[i, first] - largest[i]) / sums[i]), worth)
            if token is None and each.goes_on:
                row = logits[i].copy()
                row[first] = -np.inf
                second = int(row.argmax())
                share = float(np.exp(row[second] - largest[i]) / sums[i])
                each.add_beside(second, share, worth)

    def _run(self, chunks: Sequence[tuple[ModelStream, list[int]]]) -> Floats:
        """Compute tokens, whose cells are reserved; the logits after the last of each stream."""
        logits = self.model.run([(stream.view, tokens) for stream, tokens in chunks])
        for stream, tokens in chunks:
            stream.read += tokens
        return logits


@dataclass(slots=True)
class _Making:
    """A draft being made: its tokens so far, of which `last` ends the chain, whose chance of being
    accepted is `chance`."""

    stream: ModelStream
    wish: Wish
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    last: int = -1
    depth: int = 0
    chance: float = 1.0
    chance_before: float = 1.0
    goes_on: bool = True
    position: int = 0
    """Of the next token in the sequence."""

    def __post_init__(self) -> None:
        self.position = self.stream.length

    def add(self, token: int, share: float, worth: float) -> None:
        """The chain's next token, which the draft model gives this probability."""
        kind = bisect_right(_EDGES, share)
        chance = self.chance * self.wish.accepted[kind]
        if chance < worth:
            self.goes_on = False
            return
        self._append(token, self.last, kind)
        self.last = len(self.tokens) - 1
        self.chance_before, self.chance = self.chance, chance
        self.depth += 1
        self.position += 1
        self.goes_on = self.depth < self.wish.most

    def add_beside(self, token: int, share: float, worth: float) -> None:
        """A leaf beside the chain's last token."""
        kind = len(_PRIOR) + bisect_right(_EDGES, share)
        if self.chance_before * self.wish.accepted[kind] >= worth:
            self._append(token, self.parents[self.last], kind)

    def draft(self) -> Draft | None:
        return Draft(self.tokens, self.parents, self.kinds) if self.tokens else None

    def _append(self, token: int, parent: int, kind: int) -> None:
        self.tokens.append(token)
        self.parents.append(parent)
        self.kinds.append(kind)


class ModelStream:
    """One sequence as the draft model has read it: `read` tokens are in its state, the last
    `drafted` of them only proposed; `unread` are still to be computed."""

    def __init__(self, model: SmallModel) -> None:
        self._model = model
        self.view = model.open()
        self.read: list[int] = []
        self.drafted = 0
        self.unread: list[int] = []

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return len(self.read) - self.drafted + len(self.unread)

    def extend(self, tokens: Ints) -> None:
        """See `DraftStream`. What was drafted and is now said need not be computed again."""
        new = tokens.tolist()
        first = len(self.read) - self.drafted
        while self.drafted and new and not self.unread and self.read[first] == new[0]:
            new.pop(0)
            first += 1
            self.drafted -= 1
        self.unread += new

    def drop_drafted(self) -> None:
        """Forget the state of what was drafted and not said."""
        keep = len(self.read) - self.drafted
        if not self.unread and keep:
            self.unread = [self.read[keep - 1]]  # its logits are wanted again
            keep -= 1
        del self.read[keep:]
        self.drafted = 0
        self._model.truncate(self.view, keep)

    def reserve(self, more: int) -> bool:
        """Whether the next `more` tokens have cells."""
        return self._model.reserve(self.view, len(self.read) + more)

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        """A draft model drafts for all sequences together (`DraftModel.propose_all`)."""
        raise TypeError("a draft model proposes for all sequences together.")

    def close(self) -> None:
        """See `DraftStream`."""
        self._model.release(self.view)

    @property
    def bytes(self) -> int:
        """See `DraftStream`."""
        return self._model.bytes(self.view)
