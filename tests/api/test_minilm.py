"""The real all-MiniLM-L6-v2 beside what sentence-transformers says of the same sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ockham import LLM
from tests.helpers.minilm import find_minilm, reference

PAGE = Path(__file__).parents[2] / "docs/embeddings.md"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(find_minilm()), quantization="fp32") as made:
        yield made


def embeddings(llm: LLM) -> np.ndarray:
    outputs = llm.embed(reference()["sentences"], use_tqdm=False)
    assert [len(each.prompt_token_ids) for each in outputs] == reference()["tokens"]
    return np.stack([each.outputs.embedding for each in outputs])


def test_its_embeddings_are_those_of_sentence_transformers(llm: LLM) -> None:
    expected = np.array(reference()["embeddings"])
    assert np.abs(embeddings(llm) - expected).max() < 1e-5


def test_sentences_are_ranked_in_the_same_order(llm: LLM) -> None:
    sentences, query = reference()["sentences"], reference()["query"]
    others = [index for index in range(len(sentences)) if index != query]
    found = llm.rank(sentences[query], [sentences[index] for index in others], use_tqdm=False)
    assert [others[each.index] for each in found] == reference()["ranking"]
    scores = [reference()["cosines"][index] for index in reference()["ranking"]]
    assert [each.score for each in found] == pytest.approx(scores, abs=1e-5)


def test_eight_bits_are_near() -> None:
    expected = np.array(reference()["embeddings"])
    with LLM(str(find_minilm()), quantization="int8") as llm:
        cosines = (embeddings(llm) * expected).sum(axis=1)
    assert cosines.min() > 0.998


def test_the_example_of_the_page_works_as_it_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example, _ = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text())
    named = "sentence-transformers/all-MiniLM-L6-v2"
    assert named in example
    exec(example.replace(named, str(find_minilm())), {})
    likeness, found = capsys.readouterr().out.strip().splitlines()
    assert float(likeness) > 0.4
    assert found.startswith("1 0.")
    assert found.endswith(" The ferry leaves at six.")
