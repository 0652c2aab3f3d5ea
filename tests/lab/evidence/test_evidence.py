"""Every technique has a recipe that measures it, and what a row says follows from its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import techniques
from ockham.kernels.native import core
from ockham.lab.evidence import Bench, Row, recipe_of, recipes
from ockham.lab.evidence import recipe as recipe_module
from ockham.lab.evidence.page import quantity, write_page, write_section
from ockham.lab.evidence.row import Fidelity

PAGE = Path(__file__).parents[3] / "docs/techniques.md"


def bench() -> Bench:
    return Bench(EngineConfig(max_model_len=600, kv_cache_memory_bytes=64 << 20), rounds=1)


def row(**facts: object) -> Row:
    known = {
        "seam": "engine",
        "name": "x",
        "exact": True,
        "what": "this against that",
        "unit": "rows computed",
        "without": 200.0,
        "with_": 50.0,
        "claim": "",
    }
    return Row(**{**known, **facts})  # type: ignore[arg-type]


def test_every_registered_technique_has_a_recipe() -> None:
    known = {(recipe.seam, recipe.name) for recipe in recipes()}
    assert known >= {(technique.seam, technique.name) for technique in techniques()}
    assert {name for seam, name in known if seam == "engine"} == {
        "continuous-batching",
        "chunked-prefill",
        "no-padding",
        "fork",
        "offline-batch",
        "store",
        "store-writing",
        "swap",
        "dual-chunk",
        "state-int8",
        "state-int8-int4",
        "state-int4",
        "pins-restored",
        "compress",
    }


def test_a_technique_without_recipe_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(recipe_module._recipes, ("policy", "fcfs"))
    with pytest.raises(ConfigError, match="'fcfs' at the seam 'policy' has no recipe"):
        recipes()


def test_unknown_and_ambiguous_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="no technique 'forks'; there are continuous-batching"):
        recipe_of("forks")
    with pytest.raises(ConfigError, match="write reuse/none or drafter/none"):
        recipe_of("none")
    assert recipe_of("drafter/none").measure is None


def test_forking_saves_all_prompts_but_one_and_changes_no_token() -> None:
    measure = recipe_of("fork").measure
    assert measure is not None
    found = measure(bench())
    assert found.identical
    assert found.without - found.with_ == 4 * 7 * (256 - 1) + 4 * 7 * 1
    assert found.verdict.endswith("same tokens")


def test_a_workload_gives_the_closest_prompts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = bench()
    prompts = ([1] * 9000, [2] * 100, [3] * 40, [4] * 7)
    measured.workload, measured.workload_prompts = "mine", prompts
    engine = measured.engine()
    found = measured.prompts(engine, [35, 35, 100, 20])
    assert list(map(len, found)) == [40, 7, 100, 7]
    measure = recipe_of("no-padding").measure
    assert measure is not None
    row = measure(measured)
    assert row.what.endswith("prompts of the workload mine")
    assert row.without == 16 * 100
    assert row.with_ - 5 * (100 + 40 + 7) in (100, 40, 7)  # sixteen of three
    measured.workload_prompts = prompts[:1]
    with pytest.raises(ConfigError, match="no prompt of the workload 'mine' leaves room"):
        measured.prompts(engine, [35])


def test_a_workload_is_named_on_the_command_line() -> None:
    args = ["techniques", "measure", "fork", "--rounds", "1", "--json", "--max-model-len", "600"]
    result = CliRunner().invoke(cli, [*args, "--workload", "edit"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert found["what"].endswith("prompts of the workload edit")
    assert found["identical"]
    result = CliRunner().invoke(cli, [*args, "--set", "turns=3"])
    assert result.exit_code == 2
    assert "name it with --workload" in result.output


def test_continuous_batching_reads_the_weights_less_often() -> None:
    measure = recipe_of("continuous-batching").measure
    assert measure is not None
    found = measure(bench())
    assert found.identical
    assert 0 < found.with_ < found.without


@pytest.mark.parametrize("name", ["chunked-prefill", "fcfs", "keep/all"])
def test_recipes_that_watch_give_the_engine_back_as_it_was(name: str) -> None:
    measure, engines = recipe_of(name).measure, bench()
    assert measure is not None
    found = measure(engines)
    assert found.identical
    for engine in engines.engines():
        assert engine.scheduler.policy.name == engine.config.scheduling_policy
        windows = [g for g, layout in enumerate(engine.state.groups) if layout.window]
        assert engine.state.sliding == tuple(windows)
        engine.check_integrity()


def test_a_format_is_judged_by_bytes_and_fidelity() -> None:
    measure = recipe_of("int8").measure
    assert measure is not None
    found = measure(bench())
    assert 0.4 < found.saved < 0.6
    assert found.fidelity is not None
    assert 0.8 < found.fidelity.agreement < 1
    assert 0 < found.fidelity.kl_mean < found.fidelity.kl_p99


@pytest.mark.skipif(core is None, reason="products are those of the native core")
def test_a_block_type_is_judged_by_a_product() -> None:
    measure = recipe_of("q6_k").measure
    assert measure is not None
    found = measure(bench())
    assert found.without / found.with_ == pytest.approx(32 / 6.6, rel=0.02)
    assert found.error is not None
    assert 0 < found.error < 0.02


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, "saves 75% of the rows computed"),
        ({"with_": 200.0}, "saves no rows computed"),
        ({"with_": 300.0}, "costs 50% more rows computed"),
        ({"speed": 1.5, "speed_interval": (1.2, 1.8)}, "1.50 times as fast"),
        ({"speed": 1.1, "speed_interval": (0.9, 1.3)}, "no difference in time"),
        ({"speed": 0.5, "speed_interval": (0.4, 0.6)}, "slower: 0.50 times as fast"),
        ({"speed": 2.0}, "2.00 times as fast, in one round"),
        ({"identical": True}, "same tokens"),
        ({"identical": False}, "TOKENS DIFFER: a defect"),
        (
            {
                "exact": False,
                "fidelity": Fidelity(agreement=0.95, kl_mean=0.1, kl_p99=1.0, positions=10),
            },
            "5.0% of the likeliest tokens change",
        ),
    ],
)
def test_a_verdict_follows_from_the_figures(facts: dict[str, object], verdict: str) -> None:
    assert verdict in row(**facts).verdict


def test_the_page_has_a_section_and_a_plot_for_each(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    measured = [
        (recipe, None if recipe.measure is None else row(seam=recipe.seam, name=recipe.name))
        for recipe in recipes()
    ]
    facts = {"machine": "a machine", "date": "today", "model": "lab", "rounds": 3}
    write_page(page, measured, **facts)  # type: ignore[arg-type]
    first = page.read_bytes(), (tmp_path / "page/engine-fork.svg").read_bytes()
    write_page(page, measured, **facts)  # type: ignore[arg-type]
    assert first == (page.read_bytes(), (tmp_path / "page/engine-fork.svg").read_bytes())
    text = page.read_text()
    for recipe in recipes():
        assert f"/{recipe.name}`" in text or f"`{recipe.name}`" in text
        if recipe.measure is not None:
            assert (tmp_path / f"page/{recipe.seam}-{recipe.name}.svg").exists()


def test_the_page_begins_with_what_each_is_worth(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    fork = next(each for each in recipes() if each.name == "fork")
    int8 = next(each for each in recipes() if each.name == "int8")
    measured = [
        (fork, row(seam=fork.seam, name=fork.name)),
        (int8, row(seam=int8.seam, name=int8.name, exact=False)),
    ]
    facts = {"machine": "a machine", "date": "today", "model": "lab", "rounds": 3}
    write_page(page, measured, **facts)  # type: ignore[arg-type]
    top = page.read_text().partition("\n## ")[0]
    assert f"| [`fork`](#fork) | exact | {measured[0][1].verdict} |" in top
    assert f"| [`format/int8`](#formatint8) | approximate | {measured[1][1].verdict} |" in top


@pytest.mark.parametrize("without", ["engine/fork", "keep/recent", "policy/fcfs"])
def test_one_section_is_written_into_a_page(tmp_path: Path, without: str) -> None:
    """Taken out and written, then written anew: its places stay, and so does all else."""
    order = [each for each in recipes() if each.measure is not None]
    left_out = next(each for each in order if f"{each.seam}/{each.name}" == without)
    page = tmp_path / "page.md"
    facts = {"machine": "a machine", "date": "today", "model": "lab", "rounds": 3}
    every = [(each, row(seam=each.seam, name=each.name)) for each in order]
    write_page(page, [pair for pair in every if pair[0] is not left_out], **facts)  # type: ignore[arg-type]
    before, titles = page.read_text(), re.compile(r"(?m)^### `(.*)`$")
    for saved in (50.0, 20.0):
        found = row(seam=left_out.seam, name=left_out.name, with_=saved, model="lab")
        write_section(page, order, left_out, found, machine="mine", date="now", rounds=5)
        text = page.read_text()
        named = [f"engine/{name}" if "/" not in name else name for name in titles.findall(text)]
        assert named == [f"{each.seam}/{each.name}" for each in order]
        rows = re.findall(r"(?m)^\| \[`(.*?)`\]", text)
        assert rows == titles.findall(text)
        assert text.count("| measured on | mine, now, lab, 5 rounds |") == 1
        assert f"{saved:.0f} with" in text
        assert (tmp_path / f"page/{left_out.seam}-{left_out.name}.svg").exists()
    kept = set(before.splitlines()) - {""}
    assert kept <= set(text.splitlines())


def test_a_section_needs_a_page(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("my own words")
    for name, sentence in (("none.md", "there is no page"), ("mine.md", "is not replaced")):
        with pytest.raises(ConfigError, match=sentence):
            write_section(
                tmp_path / name,
                recipes(),
                recipe_of("fork"),
                row(),
                machine="",
                date="",
                rounds=1,
            )


def test_the_page_of_the_documentation_has_every_technique() -> None:
    text = PAGE.read_text()
    assert "Generated by `ockham techniques measure --all`; never edited" in text
    for recipe in recipes():
        name = recipe.name if recipe.seam == "engine" else f"{recipe.seam}/{recipe.name}"
        assert f"### `{name}`" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (0.1234, "0.123"), (8192, "8,192"), (16_777_216, "16.8 M"), (2.5e10, "25 G")],
)
def test_quantities_are_short(value: float, text: str) -> None:
    assert quantity(value) == text


def test_one_technique_or_all_are_named() -> None:
    for args in ([], ["fork", "--all"]):
        result = CliRunner().invoke(cli, ["techniques", "measure", *args])
        assert result.exit_code == 2
        assert "name one technique, or take --all" in result.output
