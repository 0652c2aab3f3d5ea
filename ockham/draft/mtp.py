"""Draft with the block that a checkpoint ships for that."""

from __future__ import annotations

from typing import ClassVar

from ockham.core.registry import register
from ockham.draft.modelled.sharing import SharingDrafter


@register("drafter", "mtp", exact=True, books=("mtp",))
class Mtp(SharingDrafter):
    """What the model's own block for the token after the next one says (multi-token prediction,
    DeepSeek-V3, arXiv:2412.19437).

    The block is one decoder layer, trained with the model. It reads the embedding of the newest
    token and the hidden state of the row by which that was chosen, and shares embedding and output
    head with the model; its own output takes the hidden state's place for further tokens. It has
    keys and values of its own, of the latest `draft_context` tokens. The block is found in the
    model's checkpoint, or in the one that `model` names. `ockham techniques measure drafter/mtp`
    says what it is worth.

    Where `model` is an assistant of Gemma 4, that drafts: a small model that reads the keys and
    values of this one and keeps none.
    """

    name: ClassVar[str] = "mtp"
    form: ClassVar[str] = "mtp"
