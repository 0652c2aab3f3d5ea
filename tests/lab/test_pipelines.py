"""The search for a pipeline: what it tries, and what it writes is what a request takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.lab.pipelines import Trial, operators, search_pipelines

SOME = ("one call", "vote of 2", "likeliest of 2", "vote of 16")


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    engine = Engine(EngineConfig(model="lab", max_num_seqs=32))
    yield Trial(engine, "steps", temperature=1.0, seed=0)
    engine.close()


def test_all_that_is_tried_can_be_asked_for() -> None:
    found = list(operators("Answer: (.+)"))
    assert len({label for label, _ in found}) == len(found)
    for _, search in found:
        SamplingParams(search=search)  # type: ignore[call-arg]


def test_the_best_is_within_the_budget_and_the_same_again(trial: Trial) -> None:
    def once() -> tuple[str, float, list[str]]:
        found = search_pipelines(
            trial,
            budget=90,
            items=16,
            held_out=8,
            extract="Answer: (.+)",
            tell=lambda line: None,
            among=[each for each in operators("Answer: (.+)") if each[0] in SOME],
        )
        tried = {each.label: each for each in found.tried}
        assert tried[found.best.label].tokens <= 90 * 1.05
        assert found.best.items == found.single.items == found.vote.items == 8
        assert "vote of 16" in found.dropped
        assert tried["one call"].items == 16
        assert all(
            each.right <= tried[found.best.label].right or each.items < 16
            for each in found.tried
            if each.label not in found.dropped
        )
        return found.best.label, found.best.right, found.dropped

    assert once() == once()


def test_a_budget_that_is_too_small_is_refused(trial: Trial) -> None:
    with pytest.raises(ConfigError, match="a budget of 3 is too small"):
        search_pipelines(trial, budget=3, items=8, held_out=8, extract="x", tell=lambda line: None)


def test_a_task_without_answers_is_refused(trial: Trial) -> None:
    with pytest.raises(ConfigError, match="have no right answers"):
        Trial(trial._engine, "prose", temperature=1.0, seed=0).cases(8, "test")


def test_the_command_writes_what_a_request_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ockham.lab.pipelines.COUNTS", (2,))  # few, as each takes its time
    out = tmp_path / "best.json"
    asked = ["techniques", "pipelines", "lab", "--budget", "45", "--items", "8"]
    result = CliRunner().invoke(cli, [*asked, "--held-out", "8", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "one call:" in result.output
    SamplingParams(search=json.loads(out.read_text()))  # type: ignore[call-arg]
    again = CliRunner().invoke(cli, [*asked, "--out", str(out)])
    assert again.exit_code
    assert "exists" in again.output
