"""The strings of a list in a GGUF file's header.

A vocabulary with its merges is 300,000 strings and more, each a length of 8 bytes and then UTF-8.
The native core takes them as they stand, and makes a str of those that are asked for. One by one
through `struct` it was half a second of every start.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from ockham.kernels.native import core

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH = struct.Struct("<Q")


class Strings(Protocol):
    """What there is to such a list, whoever holds it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...

    def __iter__(self) -> Iterator[str]: ...


class PlainStrings(list[str]):
    """What `StringList` of the native core is, without it."""

    def read(self, data: bytes | bytearray, offset: int, count: int) -> int:
        """Add up to `count` strings from an offset on, as many as stand whole in `data`; the offset
        after them. Invalid UTF-8 becomes U+FFFD."""
        for _ in range(count):
            start = offset + _LENGTH.size
            if start > len(data):
                break
            (length,) = _LENGTH.unpack_from(data, offset)
            if length > len(data) - start:
                break
            offset = start + length
            self.append(data[start:offset].decode(errors="replace"))
        return offset


STRINGS: type[core.StringList] | type[PlainStrings]
"""The type of such a list."""

STRINGS = PlainStrings if core is None else core.StringList
