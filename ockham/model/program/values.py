"""The values of a config.json, checked one by one so that an error names the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown

MOST_SIZE = 2**31 - 1
"""Of any size or number: token ids and positions are 32-bit integers."""

MOST_LAYERS = 10_000
_MOST = {
    "num_hidden_layers": MOST_LAYERS,
    "head_dim": 1 << 16,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
}
"""Of what decides how much is written down before the weights are looked at."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """How an error names a key of config.json: as it stands in `file`, which has other names for
    it where its values came from elsewhere."""

    file: str = "config.json"
    names: Mapping[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """E.g. "hidden_size of config.json"."""
        return f"{self.names.get(key, key)} of {self.file}"

    def lacks(self, key: str) -> str:
        """E.g. "config.json lacks 'hidden_size'"."""
        return f"{self.file} lacks {self.names.get(key, key)!r}"


class Values:
    """A config's values with types checked, so that an error names the key and the value."""

    def __init__(self, config: Mapping[str, Any], architecture: str, spelling: Spelling) -> None:
        self.config = config
        self._architecture = architecture
        self.spelling = spelling

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer up to the limit of its kind."""
        value = self.config.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.spelling.lacks(key)}, which {self._architecture} needs.")
        return self.whole(key, value)

    def sizes(self, key: str, count: int) -> tuple[int, ...] | None:
        """A list of `count` positive integers, one for each layer; None where there is no list."""
        value = self.config.get(key)
        if not isinstance(value, list):
            return None
        if len(value) != count:
            raise ModelError(
                f"{self.spelling.of(key)} has {len(value)} entries for {count} layers."
            )
        return tuple(self.whole(key, each) for each in value)

    def whole(self, key: str, value: Any) -> int:
        """The value of a key, or one of its list, checked as `size` does."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(
                f"{self.spelling.of(key)} must be a positive integer, not {shown(value)}."
            )
        most = _MOST.get(key, MOST_SIZE)
        if value > most:
            raise ModelError(
                f"{self.spelling.of(key)} is {shown(value)}; models of up to {most} are supported."
            )
        return value

    def number(self, key: str | None, default: float) -> float:
        """A finite positive number; the default where the key is None or left out."""
        value = self.optional_number(key)
        return default if value is None else value

    def optional_number(self, key: str | None) -> float | None:
        value = None if key is None else self.config.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise ModelError(
                f"{self.spelling.of(str(key))} must be a positive number, not {shown(value)}."
            )
        return float(value)

    def flag(self, key: str | bool) -> bool:
        """A boolean of the config, or `key` itself where it is one."""
        return key if isinstance(key, bool) else bool(self.config.get(key, False))

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.config.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and 0 <= i < MOST_SIZE for i in ids):
            raise ModelError(f"{self.spelling.of(key)} must be token ids, not {shown(value)}.")
        return tuple(ids)
