"""Look scores with keys up in a codebook, and read the blocks that promise a query most."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ockham.attention.choosing import (
    ChoosingAsk,
    ChoosingOptions,
    ChoosingPattern,
    numbers_of,
)
from ockham.attention.key_books import KeyBooks
from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, Calibration, SequencePattern
from ockham.model.checkpoint.codebook_files import Codebooks, read_codebooks


class A2atsOptions(ChoosingOptions, frozen=True, forbid_unknown_fields=True):
    """See `attention.choosing`; `codebook` is a file that `ockham calibrate a2ats` wrote."""

    codebook: str | None = None


class A2atsAsk(ChoosingAsk, kw_only=True, frozen=True):
    """What a request may ask of an engine that was started with a codebook."""

    name: ClassVar[str] = "a2ats"


@register("pattern", "a2ats", exact=False, books=("a2ats",), paper="179")
class A2ats:
    """Each query looks up its score with every key in a codebook, and reads the best blocks.

    Beside each key stands one byte: which of its head's 256 centroids it is nearest to. A query is
    multiplied with the centroids, and what it scores with a key is that with its centroid; blocks
    of 64 weigh what the softmax of those gives their keys. The codebook is fitted once to the
    model's own keys, so that scores differ least, and not keys (A2ATS, paper 179; there keys are
    coded before their rotation, 4,096 centroids a head, and single keys are read). Prompts are read
    whole, so that their state is shared with everybody. Measured by `ockham techniques measure
    a2ats`.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes",)
    name: ClassVar[str] = "a2ats"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[A2atsOptions]] = A2atsOptions
    Ask: ClassVar[type[A2atsAsk]] = A2atsAsk
    trial: ClassVar[dict[str, object]] = {"tokens": 0, "share": 0.1, "sinks": 0, "local": 1}
    """An ask that leaves keys out of texts of a few dozen tokens more than a block."""

    def __init__(self, options: A2atsOptions | None = None) -> None:
        """Raises ModelError for a file that holds no codebooks."""
        self.options = options or A2atsOptions()
        self._books: Codebooks | None = None
        self._digest = ""
        if self.options.codebook is not None:
            path = Path(self.options.codebook).expanduser()
            self._books = read_codebooks(path)
            self._digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()

    def identity(self, ask: A2atsAsk) -> str:
        """What the file holds decides what is read."""
        return f"{self._digest} {ask}"

    def alters_prompts(self, ask: A2atsAsk) -> bool:
        """See `Pattern`."""
        return numbers_of(self.options, ask).first is not None

    def open(self, ask: A2atsAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        """See `Pattern`."""
        self._fitting(groups)
        return ChoosingPattern.of("lookups", numbers_of(self.options, ask), groups)

    def codebooks(self, groups: Sequence[AttentionGroup]) -> list[Floats | None]:
        """See `Pattern`."""
        books = self._fitting(groups)
        return [None if each.window is not None else books.entries(each.layers) for each in groups]

    def calibration(self) -> Calibration:
        """See `Calibrated`."""
        return KeyBooks()

    def setting(self, file: str) -> str:
        """See `Calibrated`."""
        return f"--attention-pattern a2ats:codebook={file}"

    def _fitting(self, groups: Sequence[AttentionGroup]) -> Codebooks:
        if self._books is None:
            raise InvalidRequest(
                "a2ats needs a codebook of the model's keys: `ockham calibrate a2ats MODEL FILE` "
                "makes one, and --attention-pattern a2ats:codebook=FILE starts an engine with it.",
                self.name,
            )
        whole = [group for group in groups if group.window is None]
        layers = sorted(layer for group in whole for layer in group.layers)
        heads = {group.kv_heads for group in whole}
        if layers != sorted(self._books.layers) or heads != {self._books.kv_heads}:
            raise ConfigError(
                f"the codebooks of {self.options.codebook} are of a model with "
                f"{self._books.describe()}, and this one has others; fit some to this model "
                "with `ockham calibrate a2ats MODEL FILE`."
            )
        return self._books
