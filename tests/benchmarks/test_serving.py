"""The comparison of two checkouts over HTTP: its figures."""

from __future__ import annotations

import random

import psutil

from benchmarks.serving import KINDS, _used_s, body, interval


def test_the_interval_holds_the_median_and_narrows_with_what_agrees() -> None:
    drawn = random.Random(5)
    ratios = [1.02 + drawn.gauss(0, 0.05) for _ in range(200)]
    middle, low, high = interval(ratios)
    assert low < middle < high
    assert low < 1.02 < high
    assert interval([1.5] * 20) == (1.5, 1.5, 1.5)


def test_each_request_has_a_prompt_of_its_own() -> None:
    for kind in KINDS:
        path, first = body(kind, 1, 32)
        assert path.startswith("/v1/")
        assert first["max_tokens"] == 32
        assert first != body(kind, 2, 32)[1]


def test_processor_time_is_read_and_grows() -> None:
    process = psutil.Process()
    before_s = _used_s(process)
    assert sum(number * number for number in range(300_000)) > 0
    assert _used_s(process) > before_s > 0
