"""Bad parameters are refused with the name of the field."""

import msgspec
import numpy as np
import pytest

from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 10**6),
        ("n", 1.5),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("min_tokens", 17),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("seed", 2**70),
        ("stop", [""]),
        ("stop", ["x"] * 1000),
        ("stop", ["x" * 5000]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "12"),
        ("stop_token_ids", list(range(20000))),
        ("allowed_token_ids", []),
        ("bad_words", "word"),
        ("logit_bias", {3: 1000.0}),
        ("logit_bias", {-3: 1.0}),
        ("spaces_between_special_tokens", False),
        *((name, 10**400) for name in ("n", "top_k", "max_tokens", "seed", "logprobs", "min_p")),
        pytest.param("seed", 10**5000, id="seed of 5001 digits"),
        ("max_tokens", 2.5),
        ("max_tokens", float("nan")),
        ("temperature", float("inf")),
        ("stop_token_ids", [2**64]),
        ("allowed_token_ids", [2**31]),
        ("stop_token_ids", [5.5]),
        ("logit_bias", {2**64: 1.0}),
        ("logit_bias", {3: 10**400}),
        ("logit_bias", {3: float("nan")}),
        ("logit_bias", {3: True}),
        ("logit_bias", [3]),
        ("ignore_eos", 1),
        ("skip_special_tokens", "no"),
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match=field) as refused:
        SamplingParams(**{field: value})
    assert refused.value.param == field
    assert len(str(refused.value)) < 300


def test_the_defaults_are_those_of_vllm():
    p = SamplingParams()
    assert (p.n, p.temperature, p.top_p, p.top_k, p.min_p, p.max_tokens) == (1, 1.0, 1.0, 0, 0, 16)
    assert (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) == (1, 0, 0)
    assert p.seed is None
    assert p.skip_special_tokens
    assert not p.ignore_eos


def test_a_prompt_may_be_scored_without_generating():
    assert SamplingParams(max_tokens=0, prompt_logprobs=1).max_tokens == 0


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(InvalidRequest, match="token 100"):
        SamplingParams(stop_token_ids=[100]).check_vocabulary(100)


def test_none_means_the_same_as_leaving_a_parameter_out():
    names = [name for name in SamplingParams.__struct_fields__ if name != "max_tokens"]
    assert SamplingParams(**dict.fromkeys(names)) == SamplingParams()


def test_numbers_of_other_libraries_and_whole_floats_become_pythons():
    p = SamplingParams(
        max_tokens=3.0,
        top_k=np.int64(5),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        stop_token_ids=[np.int32(7), 8.0],
        logit_bias={np.int64(5): np.float64(1.5)},
    )
    assert [type(v) for v in (p.max_tokens, p.top_k, p.temperature, p.seed)] == [
        *(int, int, float, int)
    ]
    assert (p.max_tokens, p.top_k, p.temperature, p.seed) == (3, 5, 0.5, 2**64 - 1)
    assert p.stop_token_ids == [7, 8]
    assert p.logit_bias == {5: 1.5}
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(p), type=SamplingParams)
    assert decoded == p


def test_a_clone_shares_nothing():
    p = SamplingParams(stop=["a"], logit_bias={5: 1.0})
    q = p.clone()
    assert q == p
    assert q.stop is not p.stop
    assert q.logit_bias is not p.logit_bias
