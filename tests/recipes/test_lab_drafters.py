"""The recipe of the drafters: its text, its plans and its cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ockham.model.checkpoint.draft_files import CONFIG_FILE, read_acceptance
from ockham.model.hub import BUILT_IN, DRAFTERS
from ockham.training.settings import Settings
from recipes.lab.corpus import Document
from recipes.lab.drafters import METHODS, PLANS, SEED, acceptance_section, card
from recipes.lab.texts import write_texts


def test_texts_of_held_out_files_are_not_trained_on(tmp_path: Path) -> None:
    documents = [
        Document(source, f"{source}{i}.py", f"# {source} {i}\n" * 30)
        for source in ("code", "prose", "chat")
        for i in range(200)
    ]
    data, held_out = write_texts(documents, 3, tmp_path)
    trained = [json.loads(line) for line in data.read_text().splitlines()]
    assert [path.name for path in held_out] == ["code.jsonl", "prose.jsonl", "exercises.jsonl"]
    read = {line["text"] for line in trained if "text" in line}
    assert len(read) > 150
    for path in held_out[:2]:
        kept = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        assert kept
        assert not read & set(kept)
    asked = [line["messages"] for line in trained if "messages" in line]
    tested = [json.loads(line)["messages"] for line in held_out[2].read_text().splitlines()]
    assert len(tested) == 96
    assert not any(messages in asked for messages in tested)


@pytest.mark.parametrize("method", METHODS)
def test_every_plan_is_one_that_training_takes(method: str) -> None:
    settings = Settings("lab", Path("out"), method, seed=SEED, **PLANS[method])
    assert settings.steps > 1


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_shipped_cards_say_what_the_files_say(name: str) -> None:
    described = json.loads((DRAFTERS[name] / CONFIG_FILE).read_text())
    assert (DRAFTERS[name] / "README.md").read_text() == card(described)


def test_the_draft_models_card_says_what_its_head_says() -> None:
    folder = BUILT_IN["lab-drafter"]
    assert (folder / "README.md").read_text().endswith(acceptance_section(folder))


def test_the_acceptance_head_fits_the_draft_model() -> None:
    head = read_acceptance(BUILT_IN["lab-drafter"], 128)
    assert head is not None
    assert head.weight.shape == (128, 128)
