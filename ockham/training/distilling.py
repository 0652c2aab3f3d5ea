"""What a model learns from that teaches another one: the text, and the checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.checkpoint.prequantised.find import quantization_config
from ockham.text.tokenizer import Tokenizer
from ockham.training.documents import Pieces, lab_documents, read_documents

HELD_OUT_WINDOWS = 8


def read_pieces_for(
    path: Path, data: Sequence[Path], held_out: Sequence[Path], seed: int
) -> Pieces:
    """The texts of the files, as the tokenizer of the model at `path` numbers them; without files
    those of the lab models. Raises ConfigError for a file that cannot be read."""
    tokenizer = Tokenizer(path)
    if data:
        return read_documents(data, held_out, tokenizer, tokenizer.eos_token_id)
    return lab_documents(tokenizer, seed)


def open_plain(path: Path, what: str) -> OpenedModel:
    """A checkpoint. Raises ConfigError for one whose weights are quantised in another way than a
    GGUF file's, with `what` it should have been."""
    if path.is_dir():
        from ockham.model.program.description import read_config

        if quantization_config(read_config(path)) is not None:
            raise ConfigError(f"{path} is quantised, and {what} must be a plain checkpoint.")
    return open_model(path)
