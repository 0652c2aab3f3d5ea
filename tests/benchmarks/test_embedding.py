"""The benchmark of embeddings: its documents, its figures, its page."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.embedding.documents import WORKLOADS, documents, token_counts, words_of
from benchmarks.embedding.engines import (
    CONFIGURATIONS,
    REFERENCE,
    copy_with_longer_context,
    model_path,
)
from benchmarks.embedding.report import report
from benchmarks.embedding.rounds import nearness
from benchmarks.embedding.workers.serve import padded_batches
from benchmarks.peers.environments import Folder

SESSION = {
    "kind": "session",
    "date": "2026-11-28 20:00",
    "commit": "abc1234",
    "processor": "AMD EPYC",
    "cores": 2,
    "threads": 2,
    "kernel": "6.18",
    "python": "3.11.7",
    "isa": "avx512",
}


def syllables(text: str) -> int:
    """A tokenizer's count: a token for four letters of each word."""
    return sum(-(-len(word) // 4) for word in text.split())


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each.name)
def test_documents_have_the_tokens_that_their_workload_says(workload: Any) -> None:
    words = words_of()
    found = documents(workload, words, syllables, "seed")
    assert [syllables(text) + 2 for text in found] == token_counts(workload, "seed")
    low, high = workload.tokens
    assert all(low <= count <= high for count in token_counts(workload, "seed"))
    assert found == documents(workload, words, syllables, "seed")
    assert found != documents(workload, words, syllables, "another")


def test_batches_hold_each_text_once_and_little_is_padded() -> None:
    drawn = random.Random(3)
    lengths = [drawn.randrange(2, 512) for _ in range(70)]
    batches = padded_batches(lengths, 32)
    assert sorted(index for batch in batches for index in batch) == list(range(70))
    assert [len(batch) for batch in batches] == [32, 32, 6]
    assert min(lengths[i] for i in batches[0]) >= max(lengths[i] for i in batches[1])


def test_nearness_is_of_the_farthest_text_too() -> None:
    exact = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    found = nearness(np.array([[1.0, 0.0], [0.6, 0.8]], np.float32), exact)
    assert found["cosine_mean"] == pytest.approx(0.9)
    assert found["cosine_min"] == pytest.approx(0.8)
    assert found["largest_difference"] == pytest.approx(0.6)
    longer = nearness(1.01 * exact, exact)
    assert longer["cosine_mean"] == pytest.approx(1.0)
    assert longer["largest_difference"] == pytest.approx(0.01)
    with pytest.raises(ValueError, match="shape"):
        nearness(exact[:1], exact)


def records(others_share: float) -> list[dict[str, Any]]:
    """Three rounds of every configuration, of which that at place i takes 1 + i seconds."""
    found: list[dict[str, Any]] = [dict(SESSION)]
    for place, configuration in enumerate(CONFIGURATIONS):
        found.append({"kind": "version", "configuration": configuration.name, "version": "9.8"})
        for round_ in range(3):
            for workload in WORKLOADS:
                found.append(
                    {
                        "kind": "run",
                        "round": round_,
                        "workload": workload.name,
                        "configuration": configuration.name,
                        "documents": workload.documents,
                        "tokens": sum(token_counts(workload, str(round_))),
                        "seconds": (1.0 + place) * (1.0 + 0.1 * round_),
                        "others_share": others_share,
                        "cosine_mean": 0.99,
                        "cosine_min": 0.98,
                        "largest_difference": 0.01,
                    }
                )
    return found


def test_the_page_has_rates_nearness_and_what_is_missing() -> None:
    missing = {"kind": "skipped", "configuration": "llamacpp-Q8_0", "reason": "it is not set up"}
    page = report([*records(0.0), missing])
    first = next(line for line in page.splitlines() if line.startswith("| 32 | Ockham"))
    assert f"{64 / 1.1:,.0f} ({64 / 1.2:,.0f} to 64)" in first
    # The one behind Ockham takes twice as long, in each round.
    over = next(line for line in page.splitlines() if line.startswith("| 32 | sentence-tr"))
    assert f"{64 / 2.2:,.0f} ({64 / 2.4:,.0f} to 32)" in over
    ratios = page.partition("## Ockham over the others")[2].partition("##")[0]
    assert ratios.count("2.00 (2.00 to 2.00; 3)") == len(WORKLOADS)
    assert "0.990000 | 0.980000 | 1.0e-02" in page
    assert "llamacpp-Q8_0 is missing: it is not set up" in page
    assert "0 of 210 did not" in " ".join(page.split())


def test_a_machine_that_others_used_gives_no_page() -> None:
    with pytest.raises(ValueError, match="nothing else to do"):
        report(records(0.5))


def test_the_checkpoint_takes_as_many_tokens_as_it_has_positions(tmp_path: Path) -> None:
    source = tmp_path / "packaged"
    source.mkdir()
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "other": 1}')
    copy_with_longer_context(source, tmp_path / "copy")
    settings = json.loads((tmp_path / "copy" / "sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 512, "other": 1}


def test_what_reads_the_checkpoint_itself_is_given_that(tmp_path: Path) -> None:
    by_name = {each.name: each for each in CONFIGURATIONS}
    folder = Folder(tmp_path)
    assert model_path(folder, by_name[REFERENCE]).name == "all-MiniLM-L6-v2"
    assert model_path(folder, by_name["llamacpp-Q8_0"]).name == "llamacpp-Q8_0.gguf"
