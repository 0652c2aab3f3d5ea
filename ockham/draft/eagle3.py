"""Draft with an EAGLE-3 head."""

from __future__ import annotations

from typing import ClassVar

from ockham.core.registry import register
from ockham.draft.modelled.carrying import CarryingDrafter


@register("drafter", "eagle3", exact=True, books=("eagle3",))
class Eagle3(CarryingDrafter):
    """What a head says that reads three hidden states of the model (EAGLE-3, arXiv:2503.01840).

    The head is one decoder layer, trained for the frozen model. Its attention reads the embedding
    of the newest token beside the hidden states of the row by which that was chosen: those after a
    low, a middle and a high layer, joined by a matrix. It often knows a part of the vocabulary
    only. `model` is its directory. `ockham techniques measure drafter/eagle3` says what it is
    worth.
    """

    name: ClassVar[str] = "eagle3"
    form: ClassVar[str] = "eagle3"
