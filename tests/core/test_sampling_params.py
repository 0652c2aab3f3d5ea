"""Bad parameters are refused with the name of the field."""

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
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match=field) as refused:
        SamplingParams(**{field: value})
    assert refused.value.param == field


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
