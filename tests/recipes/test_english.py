"""The paragraphs of the English tasks are prose, and the card says what was measured."""

from __future__ import annotations

from ockham.lab.tasks.documentation import paragraphs
from recipes.english.card import card
from recipes.english.texts import LONGEST, SHORTEST, prose

GOOD = "The statement is used to do one thing after another, and then to say what came of it. " * 2


def test_only_prose_is_taken() -> None:
    code = "   for each in every:\n      print(each)"
    listed = f"* {GOOD}"
    found = list(prose("\n\n".join((GOOD, code, listed, "Short.", f"New in version 3. {GOOD}"))))
    assert found == [GOOD.strip()]


def test_the_paragraphs_of_the_package_are_prose_and_no_two_alike() -> None:
    found = paragraphs()
    assert len(found) == len(set(found)) == 1200
    assert all(SHORTEST <= len(each) <= LONGEST for each in found)
    assert all(list(prose(each)) == [each] for each in found)


def test_a_card_has_a_row_for_each_level_and_each_text() -> None:
    settings = {"model": "m", "num_items": 4, "seed": 3, "context": 2048, "numerics_id": "ab"}
    score = {
        "source": "needles",
        "level": "tokens=250",
        "items": 4,
        "score": 0.5,
        "score_interval": [0.1, 0.9],
        "prompt_tokens": 170.0,
        "generated_tokens": 11.0,
    }
    text = {
        "source": "code",
        "items": 2,
        "perplexity": 7.5,
        "perplexity_interval": [6.0, 9.0],
        "bits_per_byte": 0.8,
        "scored_tokens": 1234,
    }
    said = card({"settings": settings, "scores": [score, text]}, "A model")
    assert said.startswith("# A model: what it can do\n")
    assert "`ockham eval m --num-items 4 --seed 3`" in said
    assert "| needles | tokens=250 | 4 | 170 + 11 | 50.0% | 10.0% to 90.0% |" in said
    assert "| code | 7.50 | 6.00 to 9.00 | 0.800 | 1,234 |" in said
