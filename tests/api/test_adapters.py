"""Adapters by vLLM's names, in Python and on the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ockham import LLM, AsyncLLM, ConfigError, InvalidRequest, LoRARequest, SamplingParams
from ockham.api.adapters import own_adapter_setting, read_modules
from ockham.kernels.native import core
from tests.helpers.adapters import write_adapter
from tests.helpers.tiny import tiny_llama

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = [5, 9, 23, 41, 60]
SETTINGS: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": 128}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    tiny_llama(directory / "model")
    for number in range(3):
        write_adapter(directory / str(number), seed=number)
    return directory


def named(files: Path, number: int) -> LoRARequest:
    return LoRARequest(f"adapter-{number}", number + 1, str(files / str(number)))


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_each_prompt_of_a_batch_may_have_its_own(files: Path) -> None:
    model = str(files / "model")
    with LLM(model, enable_lora=True, max_loras=1, **SETTINGS) as llm:
        wanted = [named(files, 0), None, named(files, 1), named(files, 2), named(files, 0)]
        outputs = llm.generate([PROMPT] * 5, GREEDY, use_tqdm=False, lora_request=wanted)
        texts = [output.outputs[0].token_ids for output in outputs]
        for each, text in zip(wanted, texts, strict=True):
            [alone] = llm.generate(PROMPT, GREEDY, lora_request=each)
            assert alone.outputs[0].token_ids == text
        with llm.stream(PROMPT, GREEDY, lora_request=wanted[2]) as stream:
            assert [t for delta in stream for t in delta.token_ids] == texts[2]
        assert len({tuple(text) for text in texts}) == 4
        with LLM(model, **SETTINGS) as plain:
            [expected] = plain.generate(PROMPT, GREEDY)
        assert expected.outputs[0].token_ids == texts[1]


def test_what_is_wrong_with_an_adapter_is_said_of_the_prompt(files: Path, tmp_path: Path) -> None:
    model, bad = str(files / "model"), write_adapter(tmp_path / "bad", rank=64)
    with LLM(model, enable_lora=True, backend="reference", **SETTINGS) as llm:
        for wanted in (LoRARequest("bad", 1, str(bad)), LoRARequest("none", 1, "nowhere")):
            with pytest.raises(InvalidRequest, match=r"prompt 1: .*(rank 64|nowhere)"):
                llm.generate([PROMPT] * 2, GREEDY, lora_request=[None, wanted])
        with pytest.raises(InvalidRequest, match="lora_request must be"):
            llm.generate([PROMPT] * 2, GREEDY, lora_request=[named(files, 0)])
        assert len(llm.generate([PROMPT] * 2, GREEDY, use_tqdm=False)) == 2
    with (
        LLM(model, backend="reference", **SETTINGS) as llm,
        pytest.raises(InvalidRequest, match="start it with enable_lora"),
    ):
        llm.generate(PROMPT, GREEDY, lora_request=named(files, 0))


def test_the_asynchronous_engine_takes_them_too(files: Path) -> None:
    async def ask() -> None:
        async with AsyncLLM(str(files / "model"), enable_lora=True, **SETTINGS) as llm:
            found = []
            for wanted in (named(files, 1), None):
                async for output in llm.generate(PROMPT, GREEDY, kind="final", lora_request=wanted):
                    found.append(output.outputs[0].token_ids)
            assert found[0] != found[1]
            with pytest.raises(InvalidRequest, match="name the directory of a PEFT adapter"):
                async for _ in llm.generate(PROMPT, GREEDY, lora_request=LoRARequest("a", 1, "no")):
                    pass

    asyncio.run(ask())


def test_settings_are_those_of_the_technique() -> None:
    found = own_adapter_setting({"enable_lora": True, "max_loras": 3, "max_lora_rank": 32})
    assert found == {"adapter": "lora:max_loras=3,max_lora_rank=32"}
    assert own_adapter_setting({"enable_lora": False, "seed": 1}) == {"seed": 1}
    with pytest.raises(ConfigError, match="say nothing without enable_lora"):
        own_adapter_setting({"max_loras": 3})
    with pytest.raises(ConfigError, match="say the same"):
        own_adapter_setting({"enable_lora": True, "adapter": "lora"})


def test_modules_are_pairs_or_json() -> None:
    given = ["a=/x/a", '{"name": "b", "path": "/x/b"}', '[{"name": "c", "path": "/x=c"}]']
    assert read_modules(given) == {"a": "/x/a", "b": "/x/b", "c": "/x=c"}
    for wrong, message in (
        ("a", "name=path"),
        ("=x", "name=path"),
        ("{", "no JSON"),
        ('{"name": "b"}', '"name": ..., "path"'),
    ):
        with pytest.raises(ConfigError, match=message):
            read_modules([wrong])
    with pytest.raises(ConfigError, match="two adapters are called"):
        read_modules(["a=/x", "a=/y"])
