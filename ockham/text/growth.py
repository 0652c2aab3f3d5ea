"""How much longer a tokenizer may make a text, found from its description before it is run.

A tokenizer.json may replace every letter by a hundred, six times over. What it would do to a text
cannot be stopped once it is begun, so such a tokenizer is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ockham.core.errors import ModelError

MOST_GROWTH = 1000.0
"""Most characters that may be made of one; real tokenizers stay below 100."""

_UNICODE = 18.0
"""What compatibility forms may make of a character: U+FDFA becomes 18. The forms, and lower case,
make no more of what another of them made."""
_GROWS = frozenset(
    ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Precompiled", "BertNormalizer", "ByteLevel")
)


class _Described(msgspec.Struct):
    """What is looked at in a tokenizer.json: the steps that change texts."""

    normalizer: Any = None
    decoder: Any = None


def check_growth(described: bytes, path: Path) -> None:
    """Raise ModelError if texts may become more than `MOST_GROWTH` times as long on their way into
    tokens, or out of them."""
    try:
        steps = msgspec.json.decode(described, type=_Described)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelError(f"{path} cannot be read as a tokenizer ({reason}). Fetch it again.") from (
            error
        )
    for what, step in (("normalizer", steps.normalizer), ("decoder", steps.decoder)):
        growth, unicode = _growth(step)
        growth *= _UNICODE if unicode else 1.0
        if growth > MOST_GROWTH:
            raise ModelError(
                f"the {what} of {path} may make a text {growth:.3g} times as long, at most "
                f"{MOST_GROWTH:g} times is taken. Name another tokenizer with --tokenizer."
            )


def _growth(step: Any) -> tuple[float, bool]:
    """The most characters that a step makes of one, and whether it uses a Unicode form beside."""
    if not isinstance(step, dict):
        return 1.0, False
    kind = step.get("type")
    growth, unicode = 1.0, kind in _GROWS
    for part in (step.get("normalizers"), step.get("decoders")):
        for each in part if isinstance(part, list) else ():
            more, also = _growth(each)
            growth, unicode = growth * more, unicode or also
    if kind == "Replace":
        content, pattern = _text(step.get("content")), step.get("pattern")
        literal = _text(pattern.get("String")) if isinstance(pattern, dict) else ""
        # An expression may match between any two characters, where nothing is taken away.
        growth = max(1.0, len(content) / len(literal)) if literal else 1.0 + len(content)
    elif kind in ("Prepend", "WordPiece", "BPEDecoder"):
        added = max(len(_text(step.get(name))) for name in ("prepend", "prefix", "suffix"))
        growth = 1.0 + added
    return growth, unicode


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
