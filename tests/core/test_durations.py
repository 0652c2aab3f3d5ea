"""Durations as people write them."""

from __future__ import annotations

import pytest

from ockham.core.durations import duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300", 300.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        (".5h", 1800.0),
        ("250ms", 0.25),
        ("2\u00b5s3ns", 2.003e-6),
        ("-1", -1.0),
        ("-1m", -60.0),
        ("+2s", 2.0),
        ("0", 0.0),
    ],
)
def test_seconds_and_what_go_writes_are_read(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "5 m", "m", "1.5", "5m3", "1e3s", "9" * 65])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration; write 300, 5m or 1h30m"):
        duration_s(text)
