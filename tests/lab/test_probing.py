"""Probes: how they are fitted, judged, kept, and what searches do with them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ockham import LLM, SamplingParams
from ockham.core.errors import ConfigError, ModelError
from ockham.core.probe import Probe, ProbeFacts
from ockham.lab.probing import area_under_curve, logistic, probe_settings, train_probe
from ockham.model.checkpoint.probe_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_probe,
    write_probe,
)

FACTS = ProbeFacts(layer=3, model="lab", task="steps")


def test_the_fit_is_where_the_loss_is_flat() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)) * np.array([1, 5, 0.1, 1, 2, 1]) + 3
    truth = np.array([1.0, -0.2, 4.0, 0.0, 0.5, 0.0])
    y = (rng.random(400) < 1 / (1 + np.exp(-((x - 3) @ truth - 0.5)))).astype(np.float64)
    weight, bias = logistic(x, y, 0.5)
    mean, spread = x.mean(axis=0), x.std(axis=0)

    def loss(standard: np.ndarray, offset: float) -> float:
        z = (x - mean) / spread @ standard + offset
        return float(np.logaddexp(0, np.where(y == 1, -z, z)).sum() + 0.5 * standard @ standard)

    standard, offset = weight * spread, bias + mean @ weight
    least = loss(standard, offset)
    for place in range(6):
        for change in (-1e-3, 1e-3):
            moved = standard.copy()
            moved[place] += change
            assert loss(moved, offset) > least
    assert loss(standard, offset + 1e-3) > least < loss(standard, offset - 1e-3)


def test_the_area_counts_pairs() -> None:
    area = partial(area_under_curve, np.array([0.9, 0.5, 0.5, 0.1]))
    assert area(np.array([True, True, False, False])) == pytest.approx(0.875)
    assert area(np.array([False, False, True, True])) == pytest.approx(0.125)
    assert np.isnan(area(np.array([True] * 4)))


def test_a_probe_is_kept_as_it_is(tmp_path: Path) -> None:
    probe = Probe(FACTS, np.array([1.0, -2.0], np.float32), 0.5)
    write_probe(tmp_path, probe)
    found = read_probe(tmp_path)
    assert found.facts == FACTS
    states = np.array([[1, 0], [100, -100]], np.float32)
    assert found(states) == pytest.approx([1 / (1 + np.exp(-1.5)), 1.0])
    assert (found(states) == probe(states)).all()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (CONFIG_FILE, None, "cannot be read"),
        (CONFIG_FILE, "{}", "not of version 1"),
        (CONFIG_FILE, '{"version": 1, "hidden_size": 0}', "hidden_size .* is no size"),
        (CONFIG_FILE, '{"version": 1, "hidden_size": 2}', "says nothing of a probe"),
        (WEIGHTS_FILE, "", WEIGHTS_FILE),
    ],
)
def test_what_is_no_probe_is_refused(
    tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    write_probe(tmp_path, Probe(FACTS, np.array([1.0, -2.0], np.float32), 0.5))
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match=said):
        read_probe(tmp_path)


def test_a_probe_learns_from_texts_and_scores_branches(tmp_path: Path) -> None:
    config, adapter = probe_settings("lab", None)
    probe, worth = train_probe(
        config,
        "steps",
        items=24,
        samples=3,
        layer=None,
        temperature=1.2,
        adapter=adapter,
        seed=1,
        tell=lambda line: None,
    )
    assert probe.facts == ProbeFacts(layer=4, model="lab", task="steps")
    assert worth.texts == 54
    assert worth.held_out == 18
    assert len(worth.areas) == 4
    write_probe(tmp_path, probe)
    messages = [[{"role": "user", "content": "Sort 34 23 12 64 29."}]]
    found = []
    for settings in ({}, {"max_num_batched_tokens": 16, "speculative_config": "copying"}):
        with LLM("lab", max_model_len=512, probes={"p": str(tmp_path)}, **settings) as llm:  # type: ignore[arg-type]
            for method in ("best", "rebase"):
                search = {"method": method, "scorer": "probe:p", "extract": "Answer: (.+)"}
                params = SamplingParams(
                    temperature=1.0,
                    max_tokens=120,
                    seed=2,
                    search=search,  # type: ignore[call-arg]
                )
                (output,) = llm.chat(messages, params)  # type: ignore[arg-type]
                report = (output.outputs[0].report or {})[method]
                found.append(
                    (
                        output.outputs[0].text,
                        report.get("scores"),
                        report["answers" if method == "rebase" else "answer"],
                    )
                )
    assert found[:2] == found[2:]
    scores = found[0][1]
    assert scores
    assert all(0 < score < 1 for score in scores)
    assert len(set(scores)) > 1


def test_a_probe_of_another_model_is_refused(tmp_path: Path) -> None:
    write_probe(tmp_path, Probe(FACTS, np.ones(8, np.float32), 0.0))
    with pytest.raises(ConfigError, match=r"reads 8 values after layer 3 .* has 8 layers with 256"):
        LLM("lab", probes=f"p={tmp_path}")


def test_texts_that_are_all_wrong_teach_nothing() -> None:
    config, _ = probe_settings("lab", None)
    with pytest.raises(ConfigError, match="all texts are wrong"):
        train_probe(
            config,
            "long_steps",
            items=8,
            samples=1,
            layer=2,
            temperature=1.0,
            adapter=None,
            seed=1,
            tell=lambda line: None,
        )
    with pytest.raises(ConfigError, match="layer must lie in"):
        train_probe(
            config,
            "steps",
            items=8,
            samples=1,
            layer=8,
            temperature=1.0,
            adapter=None,
            seed=1,
            tell=lambda line: None,
        )
