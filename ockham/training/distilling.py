"""What trainings share in which a model learns the distributions of another one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ockham.core.errors import ConfigError
from ockham.model.calibration import CalibrationText
from ockham.text.tokenizer import Tokenizer
from ockham.training.documents import Pieces, lab_documents, read_documents
from ockham.training.windows import Windows

HELD_OUT_WINDOWS = 8


@dataclass(frozen=True)
class DistilSettings:
    """What is trained (`target`), where to (`out`), and on what: `tokens` tokens of text in batches
    of `batch_tokens` and rows of `context`. `rate` is the learning rate's peak. Raises ConfigError
    for a value that cannot be."""

    target: str
    out: Path
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    tokens: int = 200_000
    context: int = 256
    batch_tokens: int = 1024
    rate: float = 1e-4
    seed: int = 0
    method: str = ""

    def __post_init__(self) -> None:
        for name, low in (("tokens", 1), ("context", 16), ("batch_tokens", 16)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}.")
        if not 0.0 < self.rate < 1.0:
            raise ConfigError(f"rate must be positive and below 1, got {self.rate}.")

    @property
    def steps(self) -> int:
        """Steps of training."""
        return max(1, self.tokens // self.batch_tokens)

    @property
    def text_share(self) -> float:
        """All is read from text, as it is."""
        return 1.0


def read_pieces_for(
    path: Path, data: Sequence[Path], held_out: Sequence[Path], seed: int
) -> Pieces:
    """The texts of the files, as the tokenizer of the model at `path` numbers them; without files
    those of the lab models. Raises ConfigError for a file that cannot be read."""
    tokenizer = Tokenizer(path)
    if data:
        return read_documents(data, held_out, tokenizer, tokenizer.eos_token_id)
    return lab_documents(tokenizer, seed)


def rows_to_fit(windows: Windows, tokens: int) -> CalibrationText:
    """About so many tokens of the training text, for what is fitted in closed form."""
    rows = windows.batch(0, max(1, tokens // windows.context))[:, :-1].astype(np.int32)
    return CalibrationText(rows, hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest())
