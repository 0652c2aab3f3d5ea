"""An `LLM` is a context manager; once closed, or where it cannot go, it says so."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

from ockham import LLM, OckhamError, SamplingParams

PARAMS = SamplingParams(max_tokens=2)
SMALL = 8 << 20


def test_a_block_closes_its_llm() -> None:
    with LLM(kv_cache_memory_bytes=SMALL) as llm:
        assert llm.generate("x", PARAMS)[0].outputs[0].token_ids
    for use in (
        lambda: llm.generate("x", PARAMS),
        lambda: llm.chat([{"role": "user", "content": "x"}], PARAMS),
        lambda: llm.score("x y"),
        lambda: llm.stream("x", PARAMS),
        lambda: llm.pin("x", "name"),
        lambda: llm.unpin("name"),
    ):
        with pytest.raises(OckhamError, match="this LLM was closed; make another one"):
            use()
    llm.close()


def test_closing_ends_a_stream_that_runs() -> None:
    with LLM(kv_cache_memory_bytes=SMALL) as llm:
        stream = llm.stream("x", SamplingParams(max_tokens=100, ignore_eos=True))
        next(stream)
    assert stream.output.outputs[0].finish_reason == "abort"
    assert sum(1 for _ in stream) <= 1


def test_an_llm_is_neither_copied_nor_pickled() -> None:
    with LLM(kv_cache_memory_bytes=SMALL) as llm:
        for use in (pickle.dumps, copy.deepcopy, copy.copy):
            with pytest.raises(TypeError, match="Make one in each process"):
                use(llm)


def test_what_is_loaded_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ockham.engine"):
        LLM(kv_cache_memory_bytes=SMALL).close()
    assert any("memory" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, "which is the model's own limit"),
        ({"max_model_len": 64}, "as max_model_len sets it; the model itself takes"),
        ({"kv_cache_memory_bytes": 1 << 18}, "as many as the memory has room for"),
    ],
)
def test_a_prompt_that_is_too_long_is_told_which_limit_it_meets(
    settings: dict[str, int], limit: str
) -> None:
    with LLM(**{"kv_cache_memory_bytes": 32 << 20, **settings}) as llm:  # type: ignore[arg-type]
        with pytest.raises(OckhamError, match=limit) as raised:
            llm.generate([[1] * 100_000], PARAMS)
        assert "raise max_model_len" not in str(raised.value)
