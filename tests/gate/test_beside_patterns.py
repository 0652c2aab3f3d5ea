"""A gate beside a pattern of attention: the bits of the smaller model, and both on the bill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ockham.core.registry import make_asks
from ockham.engine.messages import Request
from tests.gate.test_skip_layers import LAYERS, answers, checkpoint, engine, request, without

__all__ = ["checkpoint"]

PROMPT = [(7 * i) % 97 for i in range(200)]
STREAMING = {"pattern/streaming": {"heads": "all", "sink_blocks": 1, "window_blocks": 1}}


def patterned(name: str, skip: list[int] | None = None, **params: Any) -> Request:
    asking = request(name, PROMPT, None if skip is None else {"layers": skip}, **params)
    asking.asks = {**asking.asks, **make_asks(STREAMING)}
    return asking


@pytest.mark.parametrize("logprobs", [None, 1], ids=["kept step", "plain path"])
def test_the_pattern_of_a_smaller_model(
    checkpoint: Path, tmp_path: Path, logprobs: int | None
) -> None:
    whole, smaller = engine(checkpoint), engine(without(checkpoint, tmp_path, {1}))
    params: dict[str, Any] = {"logprobs": logprobs, "max_tokens": 80}
    found = answers(whole, patterned("0", [1], **params), request("1", PROMPT[:9], **params))["0"]
    alone = answers(smaller, patterned("0", **params))["0"]
    assert found[:2] == alone[:2]
    bill = answers(engine(checkpoint), patterned("0", [1], **params))["0"][2]
    pattern = bill.saved["streaming"]
    assert pattern == alone[2].saved["streaming"]
    assert bill.flops == alone[2].flops
    assert bill.state_read_bytes == alone[2].state_read_bytes
    full = answers(engine(checkpoint), request("0", PROMPT, **params))["0"][2]
    assert bill.flops + pattern.flops + bill.saved["skip_layers"].flops == full.flops


def test_nothing_is_left_of_a_pattern_where_no_layer_attends(checkpoint: Path) -> None:
    asking = patterned("0", max_tokens=8)
    every = {"layers": list(range(LAYERS)), "part": "attention"}
    asking.asks = {**asking.asks, **make_asks({"gate/skip_layers": every})}
    bill = answers(engine(checkpoint), asking)["0"][2]
    assert "streaming" not in bill.saved
    assert bill.state_read_bytes == bill.state_written_bytes == 0
