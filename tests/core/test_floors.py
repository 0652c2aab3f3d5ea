"""Floors of quality, as they are given."""

from __future__ import annotations

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.floors import DEFAULT_FLOORS, Floors, parse_floors


def test_floors_are_read_in_any_order_and_told_in_one() -> None:
    assert parse_floors(" kl<=0.05 ,agreement >= 0.9") == Floors(0.9, 0.05)
    assert parse_floors("kl<=1e-3") == Floors(None, 0.001)
    assert parse_floors(DEFAULT_FLOORS).text == DEFAULT_FLOORS
    assert parse_floors(Floors(0.9).text) == Floors(0.9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "write agreement>=SHARE"),
        ("accuracy>=0.9", "'accuracy>=0.9' is none"),
        ("agreement=0.9", "is none"),
        ("agreement<=0.9", "write agreement>=0.9"),
        ("kl>=0.02", "write kl<=0.02"),
        ("kl<=0.02, kl<=0.03", "states kl twice"),
        ("agreement>=1", r"must lie in \[0.5, 0.999\], got 1"),
        ("kl<=0", r"must lie in \[0.0001, 0.5\], got 0"),
        ("kl<=1.2.3", "'1.2.3' is no number"),
    ],
)
def test_what_is_no_floor_is_refused_with_what_to_write(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_floors(given)
    with pytest.raises(ConfigError, match=said):
        EngineConfig(guard_floor=given)


def test_the_share_and_the_rest_have_limits() -> None:
    with pytest.raises(ConfigError, match="guard is a share"):
        EngineConfig(guard=1.5)
    with pytest.raises(ConfigError, match="guard_rest_s must be positive"):
        EngineConfig(guard_rest_s=0.0)
