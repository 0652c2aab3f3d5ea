"""Rows of exercises: decided by their number, with loss on what can be known."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from ockham.lab.tasks.recall import INTRODUCTION
from recipes.lab.skills import MIXTURES, SkillBatches
from recipes.lab.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(Path(__file__).parents[2] / "ockham/model/lab")
CONTEXT = 256


def batches(mixture: str, seed: int = 1) -> SkillBatches:
    text = np.tile(np.arange(40, 4000, dtype=np.uint16), 3)
    streams = dict.fromkeys(("code", "tests", "prose", "chat"), text)
    return SkillBatches(streams, TOKENIZER, seed, 0, CONTEXT, mixture)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_rows_are_decided_by_their_number(mixture: str) -> None:
    ids, weights = batches(mixture).batch(0, 20)
    assert ids.shape == (20, CONTEXT + 1)
    assert weights.shape == (20, CONTEXT)
    halves = [batches(mixture).batch(step, 10) for step in (0, 1)]
    assert np.array_equal(ids, np.concatenate([half[0] for half in halves]))
    assert np.array_equal(weights, np.concatenate([half[1] for half in halves]))
    assert not np.array_equal(ids, batches(mixture, seed=2).batch(0, 20)[0])


def test_answers_count_with_the_end_of_their_turn() -> None:
    end, start = (TOKENIZER.token_to_id(token) for token in ("<|im_end|>", "<|im_start|>"))
    ids, weights = batches("skills").batch(0, 20)
    targets = ids[:, 1:]
    for row, row_weights in zip(targets, weights, strict=True):
        assert row_weights.sum() > 0
        if row_weights.all() or start not in row:
            continue
        counted = TOKENIZER.decode(row[row_weights == 1].tolist(), skip_special_tokens=False)
        assert "<|im_end|>" in counted
        assert "<|im_start|>" not in counted
        assert row_weights[row == end].max() == 1


def test_lines_are_said_once_more_and_only_their_words_count() -> None:
    made = batches("far")
    ids, weights = made._lines(Random(3))
    text = TOKENIZER.decode(ids, skip_special_tokens=False)
    assert TOKENIZER.encode(text).ids == ids
    listed, once_more = text.removesuffix("<|endoftext|>").removeprefix(INTRODUCTION), []
    lines = listed.rstrip("\n").split("\n")
    once_more = [each for number, each in enumerate(lines) if each in lines[:number]]
    assert len(once_more) > 2
    counted = [token for token, weight in zip(ids, weights, strict=True) if weight == 1.0]
    words = [each.partition(":")[2] for each in once_more]
    assert TOKENIZER.decode(counted) == "".join(f"{word}\n" for word in words)
