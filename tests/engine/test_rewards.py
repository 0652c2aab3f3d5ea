"""Reward models: what they say is what transformers makes of the same text, and whatever fails
fails alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ockham import LLM, SamplingParams
from ockham.core.errors import ConfigError, InvalidRequest, TaskFailed
from ockham.engine.rewards import RewardModel, rewards_of
from ockham.model.hub import BUILT_IN
from tests.helpers.encoders import CLASSIFIERS, Case
from tests.helpers.tiny import tiny_llama

LAB = BUILT_IN["lab"]
SIZES = {"vocab_size": 4096, "max_position_embeddings": 320, "num_labels": 1}
CHAT = [{"role": "user", "content": "Add 27 and 58."}]


def made(directory: Path, kind: str, *, template: bool = True) -> tuple[Path, Any]:
    """A classifier with one output and the lab model's tokenizer, and what transformers has."""
    case = CLASSIFIERS[kind]
    values = {**case.values, **SIZES, "problem_type": None}
    model = Case(case.model, case.family, values, case.common).save(directory)
    names = ["tokenizer.json", "tokenizer_config.json"] + ["chat_template.jinja"] * template
    for name in names:
        shutil.copy(LAB / name, directory / name)
    return directory, model


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return made(tmp_path_factory.mktemp("reward"), "llama")


@pytest.fixture(scope="module")
def llm(decoder: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM("lab", max_model_len=512, rewards={"good": str(decoder[0])}) as llm:
        yield llm


def expected(model: Any, tokens: list[int]) -> float:
    with torch.no_grad():
        logit = float(model(torch.tensor([tokens])).logits[0, 0])
    return 1 / (1 + math.exp(-logit))


def rewarded(llm: LLM, **params: Any) -> Any:
    values = {"temperature": 1.0, "seed": 3, "max_tokens": 60, **params}
    search = {"method": "best", "samples": 4, "scorer": "reward:good", "extract": "text"}
    (output,) = llm.chat([CHAT], SamplingParams(search=search, n=4, **values))  # type: ignore[call-arg]
    return output


def test_a_chat_is_read_by_the_reward_models_own_template(
    llm: LLM, decoder: tuple[Path, Any]
) -> None:
    output = rewarded(llm, temperature=4.0, max_tokens=20)
    report = output.outputs[0].report["best"]
    tokenizer = llm.get_tokenizer()
    found = {}
    assert len({choice.text for choice in output.outputs}) == 4
    for choice in output.outputs:
        messages = [*CHAT, {"role": "assistant", "content": choice.text}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        found[choice.text] = expected(decoder[1], tokenizer.encode(text, add_special_tokens=False))
    assert sorted(report["scores"]) == pytest.approx(sorted(found.values()), abs=2e-4)
    assert output.outputs[0].text == max(found, key=lambda each: found[each])


@pytest.mark.parametrize("kind", ["llama", "xlm-roberta", "modernbert-cls", "qwen3"])
def test_a_text_is_scored_as_transformers_does(tmp_path: Path, llm: LLM, kind: str) -> None:
    directory, model = made(tmp_path, kind, template=False)
    tokenizer = llm.get_tokenizer()
    reward = RewardModel("r", str(directory), tokenizer, 1)
    prompt = tokenizer.encode("Add 2 and 3.")
    texts = [" 5", " It is 5.", " It is five, as everybody knows."]
    judge = reward.judging(None)
    scores = [judge.submit(np.array(prompt, np.int32), text) for text in texts]
    for text, score in zip(texts, scores, strict=True):
        tokens = tokenizer.encode(tokenizer.decode(prompt) + text, add_special_tokens=True)
        assert score.result(60) == pytest.approx(expected(model, tokens), abs=1e-4)
    reward.close()


def test_a_text_that_is_too_long_has_no_score_and_harms_no_other(
    llm: LLM, decoder: tuple[Path, Any]
) -> None:
    reward = RewardModel("r", str(decoder[0]), llm.get_tokenizer(), 1)
    judge = reward.judging(CHAT)
    long, short = (judge.submit(np.array([5], np.int32), "5 " * n) for n in (2000, 2))
    assert 0.0 <= short.result(60) <= 1.0
    with pytest.raises(TaskFailed, match=r"the reward model 'r': .*tokens"):
        long.result(60)
    reward.close()


def test_who_waits_is_told_when_it_is_closed(llm: LLM, decoder: tuple[Path, Any]) -> None:
    reward = RewardModel("r", str(decoder[0]), llm.get_tokenizer(), 1)
    judge = reward.judging(CHAT)
    waiting = [judge.submit(np.array([5], np.int32), f"{n} " * 40) for n in range(40)]
    reward.close()
    for each in waiting:
        error = each.exception(30)
        assert (error is None and 0.0 <= each.result() <= 1.0) or "stopped" in str(error)


def test_a_reward_model_steers_a_tree(llm: LLM) -> None:
    """Its scores depend on what is said alone: the same tree, whatever runs beside it."""
    search = {"method": "rebase", "width": 4, "scorer": "reward:good", "extract": "text"}
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=60, search=search)  # type: ignore[call-arg]
    alone, beside = llm.chat([CHAT], params), llm.chat([CHAT, CHAT, CHAT], params)
    for output in beside:
        assert output.outputs[0].text == alone[0].outputs[0].text


def test_a_reward_that_is_not_there_is_refused(llm: LLM) -> None:
    search = {"method": "best", "scorer": "reward:no"}
    with pytest.raises(InvalidRequest, match="no reward 'no'; there is: good"):
        llm.chat([CHAT], SamplingParams(temperature=1.0, search=search))  # type: ignore[call-arg]


def test_what_is_no_reward_model_is_refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, llm: LLM
) -> None:
    tokenizer = llm.get_tokenizer()
    several = CLASSIFIERS["llama"]
    three = tmp_path / "three"
    Case(several.model, several.family, {**several.values, **SIZES, "num_labels": 3}).save(three)
    shutil.copy(LAB / "tokenizer.json", three / "tokenizer.json")
    writer = tiny_llama(tmp_path / "writer", tokenizer=True)
    for model, said in ((three, "gives no score"), (writer, "gives no score"), ("/no", "no")):
        with pytest.raises(ConfigError, match=f"the reward model 'a': .*{said}"):
            rewards_of({"a": str(model)}, tokenizer, 1)
    with pytest.raises(ConfigError, match="has no model; write NAME=MODEL"):
        rewards_of("a", tokenizer, 1)
    with pytest.raises(ConfigError, match="need a tokenizer"):
        rewards_of("a=b", None, 1)
