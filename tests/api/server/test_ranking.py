"""A cross-encoder over HTTP: it reads query and document together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.api.test_ranking import DOCUMENTS, QUERY, word_tokenizer
from tests.helpers.encoders import CLASSIFIERS
from tests.helpers.live import LiveServer


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, list[float]]]:
    """A server with a cross-encoder of one label, and transformers' logit of each document."""
    directory = tmp_path_factory.mktemp("ranking")
    model = directory / "model"
    case = CLASSIFIERS["bert"]
    oracle = replace(case, values={**case.values, "num_labels": 1}).save(model)
    tokenizer = word_tokenizer(model)
    logits = []
    for document in DOCUMENTS:
        pair = tokenizer.encode(QUERY, document)
        with torch.no_grad():
            found = oracle(torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.type_ids]))
        logits.append(float(found.logits[0, 0]))
    with LiveServer(model, directory, "--served-model-name", "cross") as live:
        yield live, logits


def post(live: LiveServer, path: str, **body: Any) -> Any:
    response = live.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def test_documents_are_ranked_by_what_the_model_says_of_each_pair(ranking: Any) -> None:
    live, logits = ranking
    made = post(live, "/v1/rerank", query=QUERY, documents=DOCUMENTS, model="cross")
    order = [each["index"] for each in made["results"]]
    assert order == sorted(range(len(logits)), key=lambda index: -logits[index])
    for each in made["results"]:
        expected = 1 / (1 + np.exp(-logits[each["index"]]))
        assert each["relevance_score"] == pytest.approx(expected, abs=1e-4)
    assert made["usage"]["prompt_tokens"] > 3 * len(DOCUMENTS)
    raw = post(live, "/rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True)
    assert [each["index"] for each in raw] == order
    scores = {each["index"]: each["score"] for each in raw}
    assert [scores[index] for index in range(len(logits))] == pytest.approx(logits, abs=1e-4)
    pairs = post(live, "/v1/score", text_1=QUERY, text_2=DOCUMENTS, use_activation=False)
    assert [each["score"] for each in pairs["data"]] == pytest.approx(logits, abs=1e-4)


def test_a_long_document_is_cut_where_asked_and_a_query_never(ranking: Any) -> None:
    live, _ = ranking
    long = "paris " * 400
    refused = live.post("/v1/rerank", {"query": QUERY, "documents": ["a", long]})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "documents"
    assert "documents[1]: it has 4" in error["message"]
    cut = post(live, "/v1/rerank", query=QUERY, documents=["a", long], truncate_prompt_tokens=-1)
    assert len(cut["results"]) == 2
    swapped = {"query": long, "documents": ["a"], "truncate_prompt_tokens": -1}
    assert "shorten the query" in live.post("/v1/rerank", swapped).json()["error"]["message"]


def test_it_classifies_and_says_that_it_does_not_embed(ranking: Any) -> None:
    live, _ = ranking
    (found,) = post(live, "/v1/classify", input=DOCUMENTS[0])["data"]
    assert found["num_classes"] == len(found["probs"]) == 1
    assert found["label"]
    (pooled,) = post(live, "/pooling", input=DOCUMENTS[0])["data"]
    assert pooled["data"] == found["probs"]
    error = live.post("/v1/embeddings", {"input": "a"}).json()["error"]
    assert "scores pairs of texts and classifies texts" in error["message"]
    shown = post(live, "/api/show", model="cross")
    assert shown["capabilities"] == ["rerank"]
