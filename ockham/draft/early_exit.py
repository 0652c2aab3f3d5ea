"""Draft with the first layers of the model itself."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ockham.core.arrays import Floats
from ockham.core.cost import Skips
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import OwnModel
from ockham.draft.structures.parts import LastToken, PartDrafter
from ockham.draft.structures.trained import TrainedOptions, read_trained, silu
from ockham.model.checkpoint.draft_files import EarlyExit as Exit


class EarlyExitOptions(TrainedOptions, frozen=True, forbid_unknown_fields=True):
    """Instead of a `model`, `layers` says after how many of them the model is left."""

    layers: int | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 1:
            raise ConfigError(
                "layers is at least 1: after so many layers the model is left; got layers = "
                f"{self.layers}."
            )


@register("drafter", "early_exit", exact=True, books=("early_exit",), paper="128")
class EarlyExit(PartDrafter):
    """What the model would say if it ended after its first layers (self-speculation).

    With a trained drafter (`model`) a small correction stands between the last of these layers and
    the output head, as M2R2's accelerated residual foretells the later layers' states; without one
    (`layers`) the head reads what the layers give.
    """

    name: ClassVar[str] = "early_exit"

    Options: ClassVar[type[msgspec.Struct]] = EarlyExitOptions

    def __init__(self, options: EarlyExitOptions) -> None:
        self._name, self._layers = options.model, options.layers
        if (self._name is None) == (self._layers is None):
            raise ConfigError(
                'the method "early_exit" needs either a "model", a directory that `ockham draft '
                'train --method early_exit` wrote, or "layers", after how many the model is left.'
            )

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        super().attach_model(model)
        self._exit: Exit | None = None
        if self._name is not None:
            self._exit = read_trained(self._name, Exit, self.name, model)
            self._layers = self._exit.layers
        count = self._layers
        assert count is not None, "one of the two is given"
        if count >= model.layers:
            raise ConfigError(
                f"the model has {model.layers} layers, so that it can be left after 1 to "
                f"{model.layers - 1} of them, got layers = {count}."
            )
        self._later: Skips = frozenset(each for each in model.sublayers if each[0] >= count)

    def skips(self, stream: LastToken) -> Skips:
        """The layers behind the exit."""
        return self._later

    def leave(self, x: Floats) -> Floats:
        """See `PartDrafter`."""
        if self._exit is None:
            return x
        left: Floats = x + silu(x @ self._exit.weight.T + self._exit.bias)
        return left
