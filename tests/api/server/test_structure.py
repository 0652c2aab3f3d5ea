"""Counting what a JSON text holds without parsing it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ockham.api.server import structure
from ockham.api.server.structure import Counter, Most
from ockham.core.errors import InvalidRequest

SEED = 7
PIECES = ["a", '"', "\\", "\\\\", '\\"', "[", "{", ",", ":", "é", "\n", "x" * 40]


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(5 if depth else 2)
    if kind == 0:
        return rng.randrange(1000)
    if kind in (1, 2):
        return "".join(rng.choices(PIECES, k=rng.randrange(8)))
    if kind == 3:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(6))]
    names = ("".join(rng.choices(PIECES, k=5)) + str(number) for number in range(rng.randrange(6)))
    return {name: random_value(rng, depth - 1) for name in names}


def facts(value: Any) -> tuple[int, int, int]:
    """Items, commas and depth, by walking through the value."""
    if isinstance(value, str):
        return 1, 0, 0
    if not isinstance(value, (list, dict)):
        return 0, 0, 0
    inner = list(value) + list(value.values()) if isinstance(value, dict) else value
    parts = [facts(each) for each in inner]
    return (
        1 + sum(part[0] for part in parts),
        max(0, len(value) - 1) + sum(part[1] for part in parts),
        1 + max((part[2] for part in parts), default=0),
    )


def fits(text: bytes, most: Most) -> bool:
    try:
        Counter(most).count(text)
    except InvalidRequest:
        return False
    return True


@pytest.mark.parametrize("block_bytes", [2, 3, 7, 1 << 18])
def test_a_text_fits_exactly_within_what_it_holds(monkeypatch, block_bytes):
    monkeypatch.setattr(structure, "BLOCK_BYTES", block_bytes)
    rng = random.Random(SEED)
    for _ in range(300):
        value = random_value(rng, 5)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        items, values, depth = facts(value)
        assert fits(text, Most(items, values, depth)), text
        assert not values or not fits(text, Most(items, values - 1, depth)), text
        assert not depth or not fits(text, Most(items, values, depth - 1)), text
        assert not items or not fits(text, Most(items - 1, values, depth)), text


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        (b"[" * 101, "--max-json-depth"),
        (b'{"a":' * 101 + b"1", "--max-json-depth"),
        (b"[],[]," * 600, "--max-json-items"),
        (b'"a","b",' * 600, "--max-json-items"),
        (b"1," * 5001, "--max-json-values"),
    ],
)
def test_what_is_too_much_names_its_limit(text, flag):
    with pytest.raises(InvalidRequest, match=flag):
        Counter(Most(1000, 5000, 100)).count(b"[" + text)


def test_texts_of_one_request_count_together():
    counter = Counter(Most(100, 100, 10))
    counter.count(b"[" + b"1," * 60 + b"1]")
    with pytest.raises(InvalidRequest, match="of the second"):
        counter.count(b"[" + b"1," * 60 + b"1]", "The text of the second")


def test_brackets_within_texts_do_not_count():
    assert fits(json.dumps(["[{,\\" * 100_000]).encode(), Most(2, 0, 1))
