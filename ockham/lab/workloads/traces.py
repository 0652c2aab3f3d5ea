"""Workloads from files: Ockham's own, and traces in the format of Mooncake.

A trace of Mooncake (FAST '25, arXiv:2407.00079) tells no text: of each request it has the time in
milliseconds, the lengths, and a hash for each block of 512 prompt tokens, equal where blocks and
all before them are equal. Token ids are made up from the hashes, so that what was shared is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from ockham.core.errors import ConfigError
from ockham.lab.workloads.request import Request, check_order, decode_lines

BLOCK_TOKENS = 512


class TraceLine(msgspec.Struct):
    """One line of a trace."""

    timestamp: float
    """Milliseconds."""
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_requests(path: Path, vocabulary: int = 1000) -> list[Request]:
    """A workload from its file, in either format; see the module. `vocabulary` bounds the token ids
    that are made up. Raises ConfigError that names the line."""
    requests = check_order(_requests(path, vocabulary), str(path))
    if not requests:
        raise ConfigError(f"{path} holds no request.")
    return requests


def _requests(path: Path, vocabulary: int) -> Iterator[Request]:
    for number, value in decode_lines(path):
        try:
            if "hash_ids" in value:
                line = msgspec.convert(value, TraceLine)
                yield request_of(line, f"line-{number}", vocabulary)
            else:
                yield msgspec.convert(value, Request)
        except (msgspec.ValidationError, ConfigError) as error:
            raise ConfigError(f"{path}, line {number}: {str(error).rstrip('.')}.") from error


def request_of(line: TraceLine, name: str, vocabulary: int) -> Request:
    """The request that a line of a trace stands for."""
    blocks = -(-line.input_length // BLOCK_TOKENS)
    if len(line.hash_ids) != blocks:
        raise ConfigError(
            f"a prompt of {line.input_length} tokens has {blocks} blocks of {BLOCK_TOKENS}, but "
            f"hash_ids has {len(line.hash_ids)}."
        )
    tokens = np.concatenate([_block(h, vocabulary) for h in line.hash_ids] or [np.empty(0, int)])
    return Request(
        id=name,
        arrival_s=line.timestamp / 1e3,
        prompt_token_ids=tokens[: line.input_length].tolist(),
        max_tokens=line.output_length,
    )


def _block(content: int, vocabulary: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    seed = np.random.SeedSequence([content % (1 << 64)])
    return np.random.default_rng(seed).integers(0, vocabulary, BLOCK_TOKENS)
