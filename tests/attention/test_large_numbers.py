"""Numbers of any size in what a request asks of attention: refused, or served, harming nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ockham.attention.blocks import MOST
from ockham.core.errors import InvalidRequest
from ockham.core.registry import ask_of, make_asks, techniques
from tests.helpers.serving import ask, complete, drain, make_engine, tokens_of
from tests.helpers.tiny import tiny_llama


def whole_numbers() -> list[tuple[str, str]]:
    """The fields of whole numbers of what may be asked of a pattern."""
    found = []
    for each in techniques():
        kind = ask_of(each.seam, each.name) if each.seam == "pattern" else None
        for field in [] if kind is None else msgspec.structs.fields(kind):
            if "int" in str(field.type) and "float" not in str(field.type):
                found.append((each.name, field.name))
    return found


FIELDS = whole_numbers()


def asked(name: str, field: str, value: int) -> dict[str, Any]:
    [technique] = [t for t in techniques() if (t.seam, t.name) == ("pattern", name)]
    trial = getattr(technique.cls, "trial", {})
    settings = {**(trial if isinstance(trial, dict) else {}), field: value}
    return make_asks({f"pattern/{name}": settings})


@pytest.mark.parametrize(("name", "field"), FIELDS)
@pytest.mark.parametrize("value", [10**30, -(10**30), MOST + 1])
def test_what_32_bits_do_not_hold_is_refused(name: str, field: str, value: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(name, field, value)
    assert field in str(refused.value)
    assert len(str(refused.value)) < 300


def test_the_largest_numbers_end_no_engine(tmp_path: Path) -> None:
    engine = make_engine(tiny_llama(tmp_path), max_model_len=512, block_size=16)
    prompt, served = [1 + i % 20 for i in range(300)], set()
    for name, field in FIELDS:
        try:
            request = ask(name, prompt, asks=asked(name, field, MOST), max_tokens=2)
            engine.take(request)
        except InvalidRequest:
            continue
        assert [len(said) for said in tokens_of(drain(engine)).values()] == [2]
        served.add(name)
    assert {"streaming", "triangle", "xattention", "minference"} <= served
    assert len(complete(engine, [ask("after", prompt)])["after", 0]) == 20
