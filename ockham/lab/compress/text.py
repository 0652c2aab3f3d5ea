"""The text that formats are fitted to, that alternatives are scored on, and that judges the mix.

They are three parts of one text, so that nothing is judged on what it was fitted to. Without a file
of the user's it is Ockham's own documentation and code, in passages of mixed order: English prose,
tables, Python, shell and JSON. A model for another language or another kind of text wants a file of
those.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError
from ockham.model.calibration import WINDOW_TOKENS, CalibrationText
from ockham.model.windows import read_text

OWN_TEXT = Path(__file__).with_name("calibration.txt.gz")
SCORED_WINDOW = 128
"""Tokens that see each other where alternatives are scored, and the mix is judged."""
JUDGED_TOKENS = 1024
LEAST_FITTED = 256


@dataclass(frozen=True, slots=True)
class Texts:
    """Windows of token ids (count, length)."""

    judged: Ints
    scored: Ints
    fitted: CalibrationText


def read_texts(
    path: Path | None,
    encode: Callable[[str], Sequence[int]],
    scored_tokens: int,
    fitted_tokens: int,
    longest: int,
) -> Texts:
    """The parts of a text file, or of Ockham's own text: the first tokens judge, the next score,
    and up to `fitted_tokens` more are for fitting. Windows are at most `longest`.

    Raises ConfigError for a text that cannot be read or is too short.
    """
    if path is None:
        raw = gzip.decompress(OWN_TEXT.read_bytes())
        text, digest = raw.decode(), hashlib.blake2b(raw, digest_size=16).hexdigest()
    else:
        text, digest = read_text(path)
    tokens = np.array(encode(text), np.int32)
    short, long = min(SCORED_WINDOW, longest), min(WINDOW_TOKENS, longest)
    judged, scored = _whole(JUDGED_TOKENS, short), _whole(scored_tokens, short)
    needed = judged + scored + max(long, min(LEAST_FITTED, fitted_tokens))
    if len(tokens) < needed:
        raise ConfigError(
            f"the text has {len(tokens)} tokens, and at least {needed} are needed: {judged} judge "
            f"the result, {scored} score alternatives, and formats are fitted to the rest; give a "
            "longer text with --calibration."
        )
    rest = tokens[judged + scored :]
    count = max(1, min(fitted_tokens, len(rest)) // long)
    return Texts(
        tokens[:judged].reshape(-1, short),
        tokens[judged : judged + scored].reshape(-1, short),
        CalibrationText(rest[: count * long].reshape(-1, long), digest),
    )


def _whole(tokens: int, window: int) -> int:
    """So many tokens in whole windows, one at least."""
    return max(1, tokens // window) * window
