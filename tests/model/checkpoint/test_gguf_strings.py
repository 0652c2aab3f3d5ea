"""The strings of a GGUF header are the same whoever reads them, and however they were cut."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from ockham.kernels.native import core
from ockham.model.checkpoint.gguf import file
from ockham.model.checkpoint.gguf.file import GgufFile
from ockham.model.checkpoint.gguf.strings import STRINGS, PlainStrings

WORDS = [
    b"",
    b"word",
    "\u0120wort".encode(),
    b"\xff\xfe broken \xe2\x82",
    b"nul\0inside",
    b"x" * 300,
]


def spelled(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(each)) + each for each in strings)


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_the_native_reader_gives_what_the_plain_one_gives_at_every_cut() -> None:
    data = b"head" + spelled(WORDS) + struct.pack("<Q", 2**64 - 1) + b"tail"
    for stop in range(len(data) + 1):
        for count in (0, 1, len(WORDS), len(WORDS) + 3):
            for offset in {0, min(4, stop)}:
                cut = bytearray(data[:stop])
                native, plain = STRINGS(), PlainStrings()
                assert native.read(cut, offset, count) == plain.read(cut, offset, count)
                assert list(native) == plain


def test_strings_are_those_that_were_written() -> None:
    found = STRINGS()
    assert found.read(spelled(WORDS), 0, 100) == len(spelled(WORDS))
    expected = [each.decode(errors="replace") for each in WORDS]
    assert list(found) == expected
    assert [found[i] for i in range(len(found))] == expected
    assert repr(found) == repr(expected)
    again = STRINGS()
    assert found != again
    again.read(spelled(WORDS), 0, 100)
    assert found == again
    with pytest.raises(IndexError):
        found[len(WORDS)]


def test_what_is_no_utf_8_is_what_python_says() -> None:
    chance = random.Random(1)
    bytes_ = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0]
    bytes_ += [0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    drawn = [bytes(chance.choices(bytes_, k=chance.randrange(6))) for _ in range(20_000)]
    found = STRINGS()
    found.read(spelled(drawn), 0, len(drawn))
    assert list(found) == [each.decode(errors="replace") for each in drawn]


def test_a_list_of_strings_is_the_same_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(7)
    strings = [bytes(chance.choices(b"abc \xc4\xa0", k=chance.randrange(40))) for _ in range(300)]
    key = b"tokenizer.ggml.tokens"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    path = tmp_path / "a.gguf"
    path.write_bytes(header + struct.pack("<IIQ", 9, 8, len(strings)) + spelled(strings))
    for chunk in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(file, "CHUNK_BYTES", chunk)
        found = GgufFile(path).metadata["tokenizer.ggml.tokens"]
        assert list(found) == [each.decode(errors="replace") for each in strings]
