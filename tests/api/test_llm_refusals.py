"""Whatever is wrong about a batch is refused before any work, and names what is wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham import LLM, ConfigError, InvalidRequest, ModelError, SamplingParams
from ockham.api.settings import engine_config
from tests.helpers.tiny import tiny_llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
POOL = 4 << 20


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tiny_llama(tmp_path_factory.mktemp("tiny"), tokenizer=True)
    return LLM(str(directory), kv_cache_memory_bytes=POOL)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "prompt is empty"),
        ([5] * 600, "has 600 tokens"),
        ([5, 4096], "token id 4096"),
        ([5, -1], "-1, which is no token id"),
        ([5, True], "True, which is no token id"),
        ([5, "x"], "'x', which is no token id"),
        ([5, 2**40], "which is no token id"),
        ([5, 10**400], "an integer of about 401 digits, which is no token id"),
        ([5, 5.5], "5.5, which is no token id"),
        ({"text": "x"}, "either 'prompt' or 'prompt_token_ids'"),
        ({"prompt": "x", "prompt_token_ids": [1]}, "either 'prompt' or 'prompt_token_ids'"),
        ({"prompt_token_ids": 7}, "got int"),
        (7, "got int"),
        (None, "got NoneType"),
        (b"bytes", "got bytes"),
        ("half a pair: \ud83d", "surrogate"),
    ],
)
def test_a_wrong_prompt_in_a_batch_is_named_before_any_work(
    llm: LLM, prompt: Any, complaint: str
) -> None:
    before = llm.get_metrics()["ockham_steps_total"]
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        llm.generate(["fine", prompt, "fine too"], GREEDY, use_tqdm=False)
    assert "prompt 1: " in str(caught.value)
    metrics = llm.get_metrics()
    assert metrics["ockham_steps_total"] == before
    assert metrics["ockham_num_requests_waiting"] == 0


def test_a_batch_after_a_refused_one_is_not_disturbed(llm: LLM) -> None:
    (expected,) = llm.generate("fine", GREEDY)[0].outputs
    with pytest.raises(InvalidRequest):
        llm.generate(["fine", ""], GREEDY)
    (output,) = llm.generate("fine", GREEDY)[0].outputs
    assert (output.token_ids, output.text) == (expected.token_ids, expected.text)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        (SamplingParams(n=65), "n is 65"),
        (SamplingParams(stop_token_ids=[5000]), "token 5000"),
        (SamplingParams(logit_bias={4096: 1.0}), "token 4096"),
        ({"temperature": 0}, "not SamplingParams"),
        (None, "not SamplingParams"),
    ],
)
def test_wrong_parameters_in_a_batch_are_named_before_any_work(
    llm: LLM, params: Any, complaint: str
) -> None:
    before = llm.get_metrics()["ockham_steps_total"]
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        llm.generate(["one", "two"], [GREEDY, params], use_tqdm=False)
    assert "prompt 1: " in str(caught.value)
    assert llm.get_metrics()["ockham_steps_total"] == before


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10**6},
        {"max_tokens": 2**40},
        {"logprobs": 1000},
        {"prompt_logprobs": 21},
        {"stop": ["x"] * 65},
        {"stop": ["x" * 5000]},
        {"stop_token_ids": list(range(20000))},
        {"bad_words": ["x"] * 20000},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0.0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_huge_and_senseless_parameters_are_refused_when_they_are_made(
    fields: dict[str, Any],
) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(fields))):
        SamplingParams(**fields)


def test_more_parameters_than_prompts_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="2 prompts but 3 sampling_params"):
        llm.generate(["a", "b"], [GREEDY] * 3)


def test_parameters_of_another_type_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="must be SamplingParams"):
        llm.generate("a", 0.7)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [7, None, b"bytes"])
def test_prompts_of_another_type_are_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompts must be text"):
        llm.generate(prompts, GREEDY)


def test_a_wrong_conversation_in_a_batch_is_named(llm: LLM) -> None:
    good = [{"role": "user", "content": "x"}]
    with pytest.raises(InvalidRequest, match=r"prompt 1: messages\[0\] has no role"):
        llm.chat([good, [{"content": "x"}]], GREEDY)


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    llm = LLM(str(tiny_llama(tmp_path)), skip_tokenizer_init=True, kv_cache_memory_bytes=POOL)
    with pytest.raises(InvalidRequest, match="text needs a tokenizer"):
        llm.generate("text", GREEDY)
    with pytest.raises(InvalidRequest, match="text needs a tokenizer"):
        llm.chat([{"role": "user", "content": "x"}], GREEDY)


def test_a_checkpoint_without_tokenizer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*skip-tokenizer-init"):
        LLM(str(tiny_llama(tmp_path)), kv_cache_memory_bytes=POOL)


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": "hot"}'])
def test_a_broken_generation_config_is_refused(tmp_path: Path, content: str) -> None:
    directory = tiny_llama(tmp_path, tokenizer=True)
    (directory / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        LLM(str(directory), kv_cache_memory_bytes=POOL)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"no_such_setting": 1}, "no setting 'no_such_setting'"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size=2 is not supported"),
        ({"enforce_eager": "yes"}, "enforce_eager='yes' is not supported"),
        ({"trust_remote_code": True}, "trust_remote_code is not supported"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_num_seqs": "many"}, "max_num_seqs has the wrong type: expected int, got str"),
        ({"reuse": None}, "reuse has the wrong type: expected str, got null"),
        ({"kv_store": 3}, "kv_store has the wrong type"),
        ({"kv_store_bytes": "20G"}, "kv_store_bytes has the wrong type"),
        ({"speculative_config": [1]}, "speculative_config has the wrong type"),
        ({"gpu_memory_utilization": 2.0}, "gpu_memory_utilization"),
    ],
)
def test_a_wrong_setting_is_refused_before_loading(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        LLM("/no/such/model", **settings)


def test_paths_and_numpy_numbers_are_settings_too(tmp_path: Path) -> None:
    settings = {"kv_store": tmp_path, "max_num_seqs": np.int64(3), "swap_space": np.float32(0.5)}
    config = engine_config("lab", settings)
    assert (config.kv_store, config.max_num_seqs, config.swap_space) == (str(tmp_path), 3, 0.5)


def test_settings_of_vllm_that_mean_nothing_here_are_accepted(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path, tokenizer=True)
    LLM(
        str(directory),
        tensor_parallel_size=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=POOL,
        max_logprobs=20,
        limit_mm_per_prompt={},
        hf_overrides={},
        runner="generate",
        task=None,
        enable_sleep_mode=False,
        override_generation_config=None,
        distributed_executor_backend="mp",
        dtype="half",
    )


def test_arguments_of_vllm_that_ask_for_nothing_are_accepted(llm: LLM) -> None:
    (output,) = llm.generate("a", GREEDY, lora_request=None, priority=0)
    assert output.finished
    with pytest.raises(InvalidRequest, match="lora_request must be a LoRARequest"):
        llm.generate("a", GREEDY, lora_request="x")
    with pytest.raises(TypeError, match="colour"):
        llm.generate("a", GREEDY, colour=1)


def test_numbers_of_numpy_in_a_prompt_are_token_ids(llm: LLM) -> None:
    given = llm.generate([[np.int64(5), np.int32(6)]], GREEDY)[0]
    assert given.outputs[0].token_ids == llm.generate([[5, 6]], GREEDY)[0].outputs[0].token_ids


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no directory"):
        LLM("/no/such/model")


def test_a_reuse_may_be_given_by_name_alone(tmp_path: Path) -> None:
    llm = LLM(str(tiny_llama(tmp_path, tokenizer=True)), kv_cache_memory_bytes=POOL)
    message = {"role": "user", "content": "Hi"}
    for ask in (partial(llm.generate, "a"), partial(llm.chat, [message])):
        with pytest.raises(
            InvalidRequest, match=r"no approximate reuse 'chunk'; it has none\. Start"
        ):
            ask(reuse="chunk")
