"""Draft with a smaller model of the same vocabulary."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import LoadSmall
from ockham.draft.modelled.drafting import DraftingOptions, ModelDrafting
from ockham.draft.modelled.stream import ModelStream
from ockham.model.checkpoint.draft_files import read_acceptance

MOST_LAYERS = 16


class DraftModelOptions(DraftingOptions, frozen=True, forbid_unknown_fields=True):
    """So many layers of the draft model, `layer_parallel`, take the same input; 1 is exact."""

    layer_parallel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.layer_parallel <= MOST_LAYERS:
            raise ConfigError(
                f"layer_parallel must lie in [1, {MOST_LAYERS}], got {self.layer_parallel}; 1 runs "
                "the draft model as it is."
            )


@register("drafter", "draft_model", exact=True, books=("draft_model",), paper="48")
class DraftModel(ModelDrafting):
    """What a smaller model would say next, in as many branches as pay.

    The draft model reads what the target reads and has a state of its own; all sequences draft in
    the same steps of it. Its drafts are trees without repetition (Recursive Speculative Decoding,
    paper 48): of each row the best choices, for sampled sequences under the noise that the target
    will draw with. Branches are continued as far as their chance of being accepted, learned for
    each degree of the draft model's own certainty, pays for computing and verifying them; where
    `acceptance.safetensors` lies beside the model, by what this head foretells (SpecDec++, paper
    101). With `layer_parallel`, groups of the draft model's layers take the same input while it
    drafts; what was said is then computed again as it should be, in the pass that reads the next
    token (EasySpec, paper 247).
    """

    name: ClassVar[str] = "draft_model"
    automatic: ClassVar[bool] = False
    needs_model: ClassVar[bool] = True

    Options: ClassVar[type[msgspec.Struct]] = DraftModelOptions

    def __init__(self, options: DraftModelOptions) -> None:
        if options.model is None:
            raise ConfigError(
                'the method "draft_model" needs a "model": {"method": "draft_model", "model": '
                '"lab-drafter"}.'
            )
        super().__init__(options.branches, options.rejection_threshold)
        self._name, self._layer_parallel = options.model, options.layer_parallel

    def attach(self, load: LoadSmall) -> None:
        """See `Drafter`."""
        self.model = load(self._name)
        self.model.layer_parallel = self._layer_parallel
        self.head = read_acceptance(self.model.directory, self.model.hidden_size)

    def open(self, salt: str) -> ModelStream:
        """See `Drafter`. Streams share nothing but the steps that they are computed in."""
        return ModelStream(self.model, recompute=self._layer_parallel > 1)
