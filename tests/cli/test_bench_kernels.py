"""`ockham bench kernels` reports every kernel, in words and as JSON."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.kernels.native import core

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

SMALL = ("--rows", "1,3", "--contexts", "32", "--rounds", "1", "--quantization", "int4:64")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("products", "attention"):
        monkeypatch.setattr(f"ockham.lab.kernels.{module}.COLD_BYTES", 1 << 16)


def test_all_kernels_are_reported_as_json() -> None:
    result = CliRunner().invoke(
        cli, ["bench", "kernels", "lab", *SMALL, "--threads", "1", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["threads"], report["weight_format"]) == (1, "int4+int8")
    assert {one["kernel"] for one in report["kernels"]} == {
        "qkv",
        "out",
        "gate and up",
        "down",
        "head",
        "attention, decode",
        "attention, prefill",
        "embedding",
        "norm",
        "rope and cache write",
        "activation product",
        "sampler, greedy",
        "sampler, temperature 1",
        "sampler, top-p 0.9",
        "head, then sampler",
        "head, argmax",
    }
    for one in report["kernels"]:
        assert one["time_s"] > 0
        assert one["read_bytes_per_s"] > 0
        assert one["share"] > 0


def test_a_part_is_reported_as_a_table() -> None:
    result = CliRunner().invoke(cli, ["bench", "kernels", "lab", *SMALL, "--only", "products"])
    assert result.exit_code == 0, result.output
    assert "int4:64 (1536, 256)" in result.stdout
    assert "attention, decode" not in result.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--only", "everything"), "--only takes some of products"),
        (("--rows", "1,x"), "--rows takes numbers above 0"),
        (("--contexts", "0"), "--contexts takes numbers above 0"),
        (("--threads", "0"), "threads must lie in [1,"),
    ],
)
def test_flags_that_name_nothing_are_refused(flags: tuple[str, ...], sentence: str) -> None:
    result = CliRunner().invoke(cli, ["bench", "kernels", "lab", *flags])
    assert result.exit_code == 2
    assert sentence in result.output


def test_what_cannot_be_measured_is_refused() -> None:
    for args, sentence in (
        (("--backend", "reference"), "those of the cpu backend, not of 'reference'"),
        (("--only", "experts"), "lab has no kernels of the kind 'experts'"),
    ):
        result = CliRunner().invoke(cli, ["bench", "kernels", "lab", *SMALL, *args])
        assert result.exit_code == 2
        assert sentence in result.output
