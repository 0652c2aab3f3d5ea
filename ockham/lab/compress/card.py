"""What a compressed directory says of itself: every choice, and what it cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from ockham.core.units import readable


class Chosen(msgspec.Struct, frozen=True):
    """What became of one tensor (of a layer's experts, of all): `loss` is what its choice alone
    adds to the KL divergence."""

    tensor: str
    quantization: str
    bits: float
    nbytes: int
    loss: float


class ChosenShape(msgspec.Struct, frozen=True):
    """What became of one block: `loss` is what its shape alone adds to the KL divergence."""

    block: str
    shape: str
    loss: float


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A compression. `kl` is the mean KL divergence (nats a token) of the whole from the
    unquantised model on `judged_tokens` that nothing was fitted to; `predicted_kl` the sum of the
    choices' own, on the text that they were scored on. `text` is the digest of the calibration
    text."""

    model: str
    bits: float
    nbytes: int
    kl: float
    predicted_kl: float
    judged_tokens: int
    tokens_per_second: float | None
    goal: dict[str, float]
    text: str
    own_text: bool
    seconds: float
    chosen: list[Chosen]
    shapes: list[ChosenShape] = []


def card_text(card: Card) -> str:
    """The card as a page of Markdown."""
    goal = ", ".join(f"{name} {value:g}" for name, value in card.goal.items())
    speed = (
        ""
        if card.tokens_per_second is None
        else f"\n| decoding, predicted | {card.tokens_per_second:.1f} tokens/s |"
    )
    text = "Ockham's own text" if card.own_text else "a text of the user's"
    rows = "\n".join(
        f"| `{each.tensor}` | {each.quantization} | {each.bits:.2f} | {readable(each.nbytes)} | "
        f"{each.loss:.2g} |"
        for each in card.chosen
    )
    return f"""# {card.model}, compressed

`ockham compress` chose a format for each tensor of `{card.model}` (goal: {goal}).

| | |
|---|---|
| bits a weight, all included | {card.bits:.3f} |
| weights | {readable(card.nbytes)} |
| KL from the unquantised model | {card.kl:.4g} nats a token |{speed}

The KL divergence is the mean over {card.judged_tokens} tokens of {text} (digest `{card.text}`) that
nothing was fitted to or scored on. The search took {card.seconds:.0f} s.

{_summary(card.chosen)}

## Every choice

`alone` is the KL divergence where only this tensor is replaced.

| tensor | format | bits | bytes | alone |
|---|---|---|---|---|
{rows}
{_shapes(card.shapes)}"""


def _shapes(shapes: Sequence[ChosenShape]) -> str:
    """The blocks that could get smaller, where some could."""
    if not shapes:
        return ""
    rows = "\n".join(f"| `{each.block}` | {each.shape} | {each.loss:.2g} |" for each in shapes)
    return f"""
## Blocks

Feed-forwards that got narrower, fitted to what all of their channels gave, and attentions that were
removed. `alone` is the KL divergence where only this block is.

| block | shape | alone |
|---|---|---|
{rows}
"""


def _summary(chosen: Sequence[Chosen]) -> str:
    """Tensors and bytes by format."""
    by_form: dict[str, list[Chosen]] = defaultdict(list)
    for each in chosen:
        by_form[each.quantization].append(each)
    lines = [
        f"| {form} | {len(own)} | {readable(sum(each.nbytes for each in own))} |"
        for form, own in sorted(by_form.items(), key=lambda item: -len(item[1]))
    ]
    return "\n".join(["| format | tensors | bytes |", "|---|---|---|", *lines])
