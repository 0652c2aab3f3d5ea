"""Pairs of texts are scored as by transformers: cross-encoders, and decoders that judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ockham import LLM, InvalidRequest
from ockham.core.errors import ConfigError, ModelError
from ockham.core.pooling import PoolingParams
from ockham.model.tasks import JUDGES
from tests.helpers.encoders import CLASSIFIERS
from tests.helpers.oracle import VOCABULARY, Case

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "what", "is", "of", "yes", "no"]
WORDS += ["paris", "capital", "france", "it", "did", "do", "there"]
QUERY, DOCUMENTS = "what is the capital", ["paris is the capital", "the cat sat", "a mat on it"]


def word_tokenizer(directory: Path) -> Tokenizer:
    """A tokenizer of words, which puts BERT's special tokens around texts and between them."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: number for number, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Tokenizer]:
    """A cross-encoder of one label, the model of transformers, and the tokenizer."""
    directory = tmp_path_factory.mktemp("cross")
    case = CLASSIFIERS["bert"]
    oracle = replace(case, values={**case.values, "num_labels": 1}).save(directory)
    return directory, oracle, word_tokenizer(directory)


@pytest.fixture(scope="module")
def ranker(cross: tuple[Path, Any, Tokenizer]) -> Iterator[LLM]:
    with LLM(str(cross[0])) as llm:
        yield llm


def logit(cross: tuple[Path, Any, Tokenizer], document: str) -> float:
    _, oracle, tokenizer = cross
    pair = tokenizer.encode(QUERY, document)
    with torch.no_grad():
        found = oracle(torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.type_ids]))
    return float(found.logits[0, 0])


def test_a_cross_encoder_scores_pairs_as_transformers_does(cross, ranker):
    assert ranker.engine.tasks == ("score", "classify")
    expected = [1 / (1 + np.exp(-logit(cross, each))) for each in DOCUMENTS]
    found = ranker.score(QUERY, DOCUMENTS, use_tqdm=False)
    assert [each.outputs.score for each in found] == pytest.approx(expected, abs=1e-5)
    best = ranker.rank(QUERY, DOCUMENTS, use_tqdm=False)
    assert [each.index for each in best] == np.argsort(expected)[::-1].tolist()
    assert [each.document for each in best] == [DOCUMENTS[each.index] for each in best]
    alone = [ranker.score(QUERY, [each], use_tqdm=False)[0].outputs.score for each in DOCUMENTS]
    assert alone == [each.outputs.score for each in found]


def test_the_types_of_the_two_texts_count(cross, ranker):
    pair = cross[2].encode(QUERY, DOCUMENTS[0])
    flat = ranker.encode([pair.ids], pooling_task="score", use_tqdm=False)[0].outputs.score
    assert flat != ranker.score(QUERY, DOCUMENTS[:1], use_tqdm=False)[0].outputs.score


def test_the_document_of_a_pair_is_cut_and_the_query_is_not(cross, ranker):
    document = "the cat sat on a mat " * 30
    with pytest.raises(
        InvalidRequest, match=r"documents: it has 187 tokens, and the model takes 96"
    ):
        ranker.rank(QUERY, [document])
    cut = ranker.score(QUERY, [document], truncate_prompt_tokens=12, use_tqdm=False)[0]
    whole = cross[2].encode(QUERY, document).ids
    assert cut.prompt_token_ids == [*whole[:11], 3]
    with pytest.raises(InvalidRequest, match="the query alone has 6 tokens"):
        ranker.rank(QUERY, [document], truncate_prompt_tokens=6)
    with pytest.raises(InvalidRequest, match="the second text of a pair has no tokens"):
        ranker.rank(QUERY, [""])


def test_labels_are_named(tmp_path):
    CLASSIFIERS["roberta"].save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "fair", "2": "good"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    word_tokenizer(tmp_path)
    with LLM(str(tmp_path)) as llm:
        assert llm.engine.tasks == ("classify",)
        (found,) = llm.classify("the cat sat", use_tqdm=False)
        assert found.outputs.probs.sum() == pytest.approx(1, abs=1e-6)
        assert found.outputs.label == ["bad", "fair", "good"][int(found.outputs.probs.argmax())]
        raw = PoolingParams(use_activation=False)
        (logits,) = llm.classify("the cat sat", raw, use_tqdm=False)
        spread = np.exp(logits.outputs.probs.astype(float))
        assert found.outputs.probs == pytest.approx(spread / spread.sum(), abs=1e-6)
        with pytest.raises(InvalidRequest, match="cannot score pairs"):
            llm.rank("a", ["b"])


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("judge") / "qwen3-reranker"
    directory.mkdir()
    oracle = Case("Qwen3", {"head_dim": 16}).build()
    oracle.save_pretrained(directory)
    word_tokenizer(directory)
    return directory, oracle


def test_a_decoder_judges_by_its_next_token_as_transformers_does(judge):
    directory, oracle = judge
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    frame = JUDGES["Qwen3ForCausalLM"].frame
    with LLM(str(directory)) as llm:  # by its name
        assert llm.engine.tasks == ("score", "classify")
        found = llm.score(QUERY, DOCUMENTS, instruction="what fits", use_tqdm=False)
        plain = llm.score(QUERY, DOCUMENTS, use_tqdm=False)
        assert plain[1].num_cached_tokens > 10  # the frame and the query are computed once
        cut = llm.score(QUERY, ["cat " * 40], truncate_prompt_tokens=90, use_tqdm=False)[0]
    for pair, document in zip(found, DOCUMENTS, strict=True):
        body = frame.body.format(instruction="what fits", query=QUERY, document=document)
        ids = [
            token
            for text in (frame.before, body, frame.behind)
            for token in tokenizer.encode(text, add_special_tokens=False).ids
        ]
        assert pair.prompt_token_ids == ids
        with torch.no_grad():
            logits = oracle(torch.tensor([ids])).logits[0, -1]
        expected = torch.softmax(logits[[no, yes]], 0)[1].item()
        assert pair.outputs.score == pytest.approx(expected, abs=1e-5)
    behind = tokenizer.encode(frame.behind, add_special_tokens=False).ids
    assert len(cut.prompt_token_ids) == 90
    assert cut.prompt_token_ids[-len(behind) :] == behind


def test_what_a_decoder_is_for_can_be_said(judge, tmp_path):
    directory, _ = judge
    for task, tasks in (("generate", ("generate",)), ("embed", ("embed", "token_embed"))):
        with LLM(str(directory), task=task) as llm:
            assert llm.engine.tasks == tasks
    with pytest.raises(ConfigError, match="without the head of a classifier"):
        LLM(str(directory), task="classify")
    lacking = tmp_path / "qwen3-reranker"
    shutil.copytree(directory, lacking)
    (lacking / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="needs the token 'no'"):
        LLM(str(lacking))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "generate"}, "has no head to generate text with"),
        ({"task": "embed"}, "which classifies"),
        ({"keep": "recent"}, "keep is 'recent', but .* is an encoder"),
        ({"reuse": "prefix,chunk"}, "leave reuse out"),
        ({"speculative_config": "copying"}, "leave speculative_config out"),
    ],
)
def test_settings_that_an_encoder_cannot_have_are_refused(cross, settings, message):
    with pytest.raises(ConfigError, match=message):
        LLM(str(cross[0]), **settings)


def test_the_vocabulary_of_these_tests_fits_the_models():
    assert len(WORDS) + 4 <= VOCABULARY
