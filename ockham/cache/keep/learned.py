"""What the rules share whose scores are learned: reading the heads, and scoring tokens by them.

No technique lives here. A score follows from the hidden state of its own token, is computed once
and never changes: so what stays at a border follows from the tokens before it alone, whatever the
chunks and the batch were, and whatever is asked later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import InvalidRequest, ModelError
from ockham.core.registry import techniques
from ockham.core.seams import NOTHING, AttentionGroup, Keeping, KeptText, OwnRows, Seen, Wants
from ockham.model.checkpoint.keep_files import KeepHeads, ModelSizes, normalised, rule_of

HeadKind = Literal["linear", "inner", "alpha"]
"""What is learned of a model's heads: a score of each token, by one matrix or by two with a SiLU
between them, or a number for each head. A rule that `ockham train keep` can train says it in its
class, as `heads_kind`."""


def trained_rules() -> dict[str, HeadKind]:
    """The rules that are trained, and what their heads are made of."""
    kinds = {each.name: getattr(each.cls, "heads_kind", None) for each in techniques("keep")}
    return {name: kind for name, kind in kinds.items() if kind is not None}


PACKAGED = Path(__file__).parents[2] / "model" / "keep_heads"
"""The heads that come with Ockham, of each rule and model a directory."""


class _Trained(Protocol):
    """What was trained for a model of these sizes."""

    @property
    def sizes(self) -> ModelSizes: ...


_Found = TypeVar("_Found", bound=_Trained)


class Heads(Generic[_Found]):
    """The heads of a rule: those of a directory, or else of the models in the package."""

    def __init__(self, rule: str, directory: str | None, read: Callable[[Path], _Found]) -> None:
        """Raises ModelError if the directory holds no heads, or those of another rule; `read` reads
        them."""
        self._rule = rule
        own = None if directory is None else Path(directory).expanduser()
        places = sorted(PACKAGED.glob(f"{rule}-*")) if own is None else [own]
        for place in places:
            if (found := rule_of(place)) != rule:
                raise ModelError(
                    f"{place} holds heads of {found}, not of {rule}; train some with `ockham "
                    f"train keep MODEL DIR --rule {rule}`."
                )
        self._found = [(place, read(place)) for place in places]

    def of(self, text: KeptText) -> _Found:
        """Those for a text's model. Raises InvalidRequest if they are of another one."""
        sizes = _sizes(text)
        for _, heads in self._found:
            if heads.sizes == sizes:
                return heads
        if sizes is None:
            raise InvalidRequest(
                f"{self._rule} needs layers that all attend, with as many key-value heads, and "
                "some of them without a sliding window; this model has others: leave it out.",
                self._rule,
            )
        remedy = f"train some with `ockham train keep MODEL DIR --rule {self._rule}`"
        known = " or of ".join(
            f"{heads.sizes.describe()} ({place.name})" for place, heads in self._found
        )
        raise InvalidRequest(
            f"the heads of {self._rule} are of a model of {known}, and this one has "
            f"{sizes.describe()}: {remedy}, and start the engine with "
            f"--keep {self._rule}:heads=DIR.",
            self._rule,
        )


def _sizes(text: KeptText) -> ModelSizes | None:
    """Those of the model; None if its layers differ, some do not attend, or none keeps all
    cells."""
    heads = {group.kv_heads for group in text.groups}
    layers = sorted(layer for group in text.groups for layer in group.layers)
    if len(heads) != 1 or all(group.window is not None for group in text.groups):
        return None
    if layers != list(range(len(layers))):
        return None
    return ModelSizes(text.hidden_size, len(layers), heads.pop())


class ScoredCells(Keeping):
    """Scores the tokens of a sequence as they are computed. A rule derives from it, and says by
    `keep` what stays."""

    observes: ClassVar[bool] = True

    def __init__(self, name: str, heads: KeepHeads, groups: Sequence[AttentionGroup]) -> None:
        self.name = name
        self._heads, self._groups = heads, groups
        self._layers = [layer for group in groups if group.window is None for layer in group.layers]
        self._inputs = [layer - 1 for layer in self._layers]
        self._scores = self._none()
        """Of each token that was seen."""

    def scores(self, group: int, places: Ints) -> Floats:
        """Those of a group's cells, whose tokens stand in `places` (layers, kv_heads, n); those of
        entries of -1 mean nothing."""
        rows = [self._layers.index(layer) for layer in self._groups[group].layers]
        found: Floats = np.take_along_axis(self._scores[rows], np.maximum(places, 0), axis=-1)
        return found

    def wide(self, group: int, places: Ints) -> Ints:
        """The places of a group's cells for each layer and head, -1 where a head holds none."""
        own = self._groups[group]
        shape = (len(own.layers), own.kv_heads, places.shape[-1])
        return np.broadcast_to(places, shape)

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        if not len(own.tokens):
            return NOTHING
        return Wants(hidden=self._inputs, rows=np.arange(len(own.tokens), dtype=np.int32))

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        most = int(own.places.max()) + 1
        held = self._scores.shape[-1]
        if most > held:
            more = np.empty((*self._scores.shape[:-1], max(most, 2 * held, 256)), np.float32)
            more[..., :held] = self._scores
            self._scores = more
        for index, after in enumerate(self._inputs):
            layer = self._layers[index]
            self._scores[index][:, own.places] = score(self._heads, layer, seen.hidden[after]).T

    def fork(self, tokens: int) -> Keeping | None:
        """See `Keeping`. Tokens after `tokens` are scored anew."""
        return self._twin(self._scores[..., :tokens].copy())

    def fresh(self) -> Keeping:
        """See `Keeping`."""
        return self._twin(self._none())

    def _none(self) -> Floats:
        """The scores of no token."""
        return np.empty((len(self._layers), self._heads.sizes.kv_heads, 0), np.float32)

    def _twin(self, scores: Floats) -> Keeping:
        twin = type(self).__new__(type(self))
        twin.__dict__ = {**self.__dict__, "_scores": scores}
        return twin


def score(heads: KeepHeads, layer: int, x: Floats) -> Floats:
    """The scores of rows of the residual stream before a layer: (n, d) -> (n, kv_heads). Each row
    is multiplied by itself, so that its bits depend on no other."""
    x = normalised(x)
    if heads.inner is not None and heads.inner_biases is not None:
        x = _product(x, heads.inner[layer]) + heads.inner_biases[layer]
        x = (x / (1.0 + np.exp(-x))).astype(np.float32, copy=False)
    found: Floats = _product(x, heads.weights[layer]) + heads.biases[layer]
    return found


def _product(x: Floats, weights: Floats) -> Floats:
    found: Floats = np.matmul(x[:, None, :], weights.T)[:, 0]
    return found


def checked(given: Any, least: dict[str, float], most: dict[str, float]) -> None:
    """Raise ValueError, with a sentence, for a number out of its bounds; None is none."""
    for name, low in least.items():
        value, high = getattr(given, name), most[name]
        if value is not None and not low <= value <= high:
            bounds = [int(each) if each == int(each) else each for each in (low, high)]
            raise ValueError(f"{name} must be from {bounds[0]} to {bounds[1]}, got {value}.")
