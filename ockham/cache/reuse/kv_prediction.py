"""Predict a prompt's keys and values from what a smaller model makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.asks import ReuseAsk
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Given, LoadSmall, PagePool, SmallModel, Splice
from ockham.model.checkpoint.prediction_files import StateMaps, read_maps


class KvPredictionOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`maps` is a directory that `ockham train kv-prediction` wrote. The `last_tokens` of a prompt
    are computed, and see what was predicted of those before them."""

    maps: str = ""
    last_tokens: int = 16

    def __post_init__(self) -> None:
        if self.last_tokens < 1:
            raise ConfigError(f"last_tokens must be at least 1, got {self.last_tokens}.")


@register("reuse", "kv_prediction", exact=False, books=("kv_prediction",), paper="53")
class KvPrediction:
    """A smaller model reads the prompt, and linear maps predict keys and values from its states.

    Only a prompt's last tokens are computed by the model itself, so that the first token comes
    sooner (KV Prediction, Horton et al. 2024, arXiv:2410.08391). Every token after it is decoded by
    the model over what was predicted. The maps are trained for one pair of models, here by linear
    regression on their states alone; the paper trains the smaller model with them. What is
    predicted is nobody else's, and a prompt is read by the smaller model in one piece, for which
    other requests wait. Measured by `ockham techniques measure kv_prediction`.
    """

    name: ClassVar[str] = "kv_prediction"
    Options: ClassVar[type[msgspec.Struct]] = KvPredictionOptions
    Ask: ClassVar[type[ReuseAsk]] = ReuseAsk

    def __init__(self, options: KvPredictionOptions | None = None) -> None:
        self.options = options or KvPredictionOptions()
        if not self.options.maps:
            raise ConfigError(
                "kv_prediction needs maps: name a directory that `ockham train kv-prediction` "
                "wrote, as in --reuse prefix,kv_prediction:maps=DIR."
            )
        self._maps = read_maps(Path(self.options.maps).expanduser())

    def attach(self, pool: PagePool, slope: float, layers: Sequence[int]) -> None:
        if any(pool.windows):
            raise ConfigError(
                "the model has layers with a sliding window, whose state cannot be predicted; "
                "leave kv_prediction out."
            )
        self._pool = pool

    def attach_second(
        self, load: LoadSmall, hidden_size: int, heads: Mapping[int, tuple[int, int]]
    ) -> None:
        """See `UsesSecondModel`."""
        sizes = self._maps.sizes
        wanted = dict.fromkeys(range(sizes.layers), (sizes.kv_heads, sizes.head_dim))
        if dict(heads) != wanted or hidden_size != sizes.hidden_size:
            raise ConfigError(
                f"the maps of {self.options.maps} are for a model of hidden size "
                f"{sizes.hidden_size} with {sizes.layers} layers of {sizes.kv_heads} key-value "
                f"heads of {sizes.head_dim}, and this one is another; train maps for it."
            )
        self._auxiliary = load(self._maps.auxiliary)
        if self._auxiliary.hidden_size != sizes.auxiliary_size:
            raise ConfigError(
                f"the maps of {self.options.maps} are from a model of hidden size "
                f"{sizes.auxiliary_size}, and {self._maps.auxiliary} has "
                f"{self._auxiliary.hidden_size}; train maps for it."
            )

    def open(self, tokens: Ints, first: int, salt: str, ask: ReuseAsk) -> PredictedSplice | None:
        computed = self.options.last_tokens
        if len(tokens) - first <= computed or len(tokens) > self._auxiliary.longest:
            return None
        return PredictedSplice(self._auxiliary, self._maps, tokens, first, computed)

    def evictable(self) -> list[int]:
        return [0] * len(self._pool.sizes)

    def forget(self) -> None:
        """Nothing is held."""

    def held(self) -> list[Ints]:
        return [np.empty(0, np.int32) for _ in self._pool.sizes]


class PredictedSplice(Splice):
    """One prompt, whose cells from `first` on are predicted but for the last `computed`."""

    def __init__(
        self, auxiliary: SmallModel, maps: StateMaps, tokens: Ints, first: int, computed: int
    ) -> None:
        self._auxiliary, self._maps, self._tokens = auxiliary, maps, tokens
        self._first, self._end = first, len(tokens) - computed
        self._predicted: list[tuple[Floats, Floats]] | None = None
        self.todo: Ints = np.arange(self._end, len(tokens), dtype=np.int32)

    def given(self, start: int, stop: int) -> Given:
        """See `Splice`. The smaller model reads the prompt when this is first asked for."""
        cells = np.arange(max(start, self._first), min(stop, self._end), dtype=np.int32)
        if not len(cells):
            return Given(cells, [], cells)
        if self._predicted is None:
            self._predicted = self._maps.keys_and_values(self._states())
        made = {
            layer: (keys[cells], values[cells])
            for layer, (keys, values) in enumerate(self._predicted)
        }
        return Given(cells, [], np.zeros_like(cells), made)

    def reached(self, cells: int, tables: Sequence[Ints]) -> None:
        """See `Splice`."""

    def leave(self) -> None:
        """See `Splice`."""
        self._predicted = None

    def _states(self) -> dict[int, Floats]:
        """What the smaller model makes of the tokens before those that are computed."""
        view = self._auxiliary.open()
        try:
            tokens = self._tokens[: self._end].tolist()
            return self._auxiliary.states(view, tokens, self._maps.sources)
        finally:
            self._auxiliary.release(view)
