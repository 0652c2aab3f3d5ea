"""Rows of a model are kept as they are measured, stand beside the lab model's, and say whether a
technique pays there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.lab.evidence import Bench, Recipe, Row, recipe_of, recipes
from ockham.lab.evidence import recipe as recipe_module
from ockham.lab.evidence.measured import Measured, append_row, in_order, measure, read_rows
from ockham.lab.evidence.page import write_beside, write_page
from ockham.lab.evidence.row import Fidelity
from ockham.lab.evidence.worth import worth
from ockham.lab.tasks.suites import ENGLISH

WHERE = {"machine": "a machine", "date": "today"}


def row(**facts: object) -> Row:
    known = {
        "seam": "keep",
        "name": "recent",
        "exact": False,
        "what": "this against that",
        "unit": "pages held",
        "without": 200.0,
        "with_": 50.0,
        "claim": "half for nothing",
    }
    return Row(**{**known, **facts})  # type: ignore[arg-type]


def measured(name: str, model: str = "mine", **facts: object) -> Measured:
    recipe = recipe_of(name)
    found = row(seam=recipe.seam, name=recipe.name, **facts)
    return Measured(seam=recipe.seam, name=recipe.name, model=model, row=found, **WHERE)


def test_answers_are_compared_question_by_question() -> None:
    found = row()
    found.compare_answers([1.0, 1.0, 0.0, 1.0] * 10, [1.0, 0.0, 0.0, 1.0] * 10)
    assert found.scores == (0.75, 0.5)
    assert found.score_interval is not None
    low, high = found.score_interval
    assert low < -0.25 < high < 0
    assert found.scored_items == 40
    assert "75% of the answers right without, 50% with (-" in found.verdict
    found.compare_answers([], [])
    assert found.scored_items == 40


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, "undecided: what it changes was not compared"),
        (
            {"fidelity": Fidelity(agreement=0.95, kl_mean=0.1, kl_p99=1.0, positions=9)},
            "pays: little changes",
        ),
        ({"with_": 199.0}, "does not pay: it saves nothing here"),
        (
            {"scores": (0.5, 0.5), "score_interval": (-0.05, 0.05)},
            "pays: no loss of answers is seen",
        ),
        (
            {"scores": (0.5, 0.2), "score_interval": (-0.4, -0.2)},
            "does not pay: it loses answers, 20% of them or more",
        ),
        (
            {
                "scores": (0.5, 0.5),
                "score_interval": (-0.05, 0.05),
                "later_scores": (0.5, 0.1),
                "later_interval": (-0.5, -0.3),
            },
            "does not pay: it loses answers to later questions, 30% of them or more",
        ),
        (
            {"scores": (0.5, 0.4), "score_interval": (-0.3, 0.1)},
            "undecided: up to 30% of the answers may be lost",
        ),
        (
            {"scores": (0.0, 0.0), "score_interval": (-0.05, 0.05)},
            "undecided: the model answers too few of these questions",
        ),
        (
            {"fidelity": Fidelity(agreement=0.7, kl_mean=1.0, kl_p99=3.0, positions=9)},
            "does not pay: 30% of the likeliest tokens change",
        ),
        ({"perplexity": (10.0, 11.0)}, "does not pay: perplexity rises by more than 5%"),
        ({"exact": True}, "pays"),
        ({"exact": True, "with_": 200.0}, "does not pay: it saves nothing here"),
    ],
)
def test_whether_a_technique_pays_follows_from_its_figures(
    facts: dict[str, object], verdict: str
) -> None:
    assert worth(row(**facts)) == verdict


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    first, second = measured("fork"), measured("keep/recent")
    for each in (first, second, measured("fork", with_=20.0)):
        append_row(path, each)
    found = read_rows(path, "mine")
    assert [each.key for each in found] == [("engine", "fork"), ("keep", "recent")]
    assert found[0].row is not None
    assert found[0].row.with_ == 20.0
    assert [each.name for each in in_order(found[::-1], recipes())] == ["fork", "recent"]
    with pytest.raises(ConfigError, match="line 1: it is of the model 'mine', not 'yours'"):
        read_rows(path, "yours")
    path.write_text("no row\n")
    with pytest.raises(ConfigError, match="line 1: nothing that `ockham techniques measure` wrote"):
        read_rows(path)


def test_what_cannot_be_measured_on_a_model_says_why() -> None:
    elsewhere = Bench(EngineConfig(model="smollm2"), 1, 0)
    assert elsewhere.suite is ENGLISH
    found = measure(recipe_of("drafter/medusa"), elsewhere, **WHERE)
    assert found.row is None
    assert found.skipped == "what it needs was trained for the lab's models"

    def refuse(bench: Bench) -> Row:
        raise ConfigError("this model has no heads.")

    refusing = Recipe("keep", "recent", "", refuse)
    assert measure(refusing, elsewhere, **WHERE).skipped == "this model has no heads."
    with pytest.raises(ConfigError, match="this model has no heads"):
        measure(refusing, Bench(EngineConfig(), 1, 0), **WHERE)


def test_rows_of_another_model_stand_beside_the_lab_s(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    order = [each for each in recipes() if each.measure is not None]
    every = [(each, row(seam=each.seam, name=each.name, model="lab")) for each in order]
    write_page(page, every, model="lab", rounds=5, **WHERE)
    lab = page.read_text()
    found = [
        measured("keep/recent", scores=(0.5, 0.2), score_interval=(-0.4, -0.2)),
        measured("fork", exact=True),
        Measured(seam="drafter", name="medusa", model="mine", skipped="no heads", **WHERE),
    ]
    write_beside(page, order, found)
    once = page.read_text()
    assert once.count("\n## On mine\n") == 1
    top = once.partition("\n## On mine\n")[2].partition("\n## ")[0]
    lines = [line for line in top.splitlines() if line.startswith("| [`keep/recent`]")]
    assert len(lines) == 1
    assert "| half for nothing | saves 75% of the pages held |" in lines[0]
    assert lines[0].endswith("| does not pay: it loses answers, 20% of them or more |")
    assert "| `drafter/medusa` | no heads |" in top
    assert re.search(r"(?m)^\| .*`keep/snapkv`.* \| not yet: the same command goes on", top)
    section = once.partition("\n### `keep/recent`\n")[2].partition("\n### ")[0]
    assert "| verdict |" in section.partition("| mine: pages held | 200 without, 50 with |")[0]
    assert "| mine: answers right | 50.0% without, 20.0% with (-40 to -20 points) |" in section
    write_beside(page, order, found)
    assert page.read_text() == once
    kept = set(lab.splitlines()) - {""}
    assert kept <= set(once.splitlines())


def test_a_model_s_rows_need_a_page_of_the_lab_s(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of the lab model first"):
        write_beside(tmp_path / "none.md", recipes(), [measured("fork")])
    args = ["techniques", "measure", "--all", "--model", "smollm2", "--page"]
    result = CliRunner().invoke(cli, [*args, str(tmp_path / "none.md")])
    assert result.exit_code != 0
    assert "there is no page of those" in " ".join(result.output.split())


def test_a_run_over_all_goes_on_where_its_rows_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, rows = tmp_path / "page.md", tmp_path / "page/smollm2.jsonl"
    every = [(each, row(seam=each.seam, name=each.name)) for each in recipes() if each.measure]
    write_page(page, every, model="lab", rounds=5, **WHERE)
    asked: list[str] = []

    def known(recipe: Recipe) -> Recipe:
        def take(bench: Bench) -> Row:
            asked.append(recipe.name)
            return row(seam=recipe.seam, name=recipe.name, model="smollm2")

        return Recipe(recipe.seam, recipe.name, recipe.summary, take if recipe.measure else None)

    for key, recipe in list(recipe_module._recipes.items()):
        monkeypatch.setitem(recipe_module._recipes, key, known(recipe))
    append_row(rows, measured("fork", "smollm2"))
    args = ["techniques", "measure", "--all", "--model", "smollm2", "--page", str(page)]
    for _ in range(2):
        result = CliRunner().invoke(cli, args)
        assert result.exit_code == 0, result.output
    assert len(asked) == len(every) - 1
    assert "fork" not in asked
    assert len(read_rows(rows, "smollm2")) == len(recipes())
    assert page.read_text().count("| smollm2: verdict |") == len(every)
