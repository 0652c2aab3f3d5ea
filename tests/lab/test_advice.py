"""Crossovers are arithmetic over a model's cost and a machine's rates, and checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ockham.cli.advise import told
from ockham.core.cost import GroupCost, ModelCost, ProductCost
from ockham.core.errors import ConfigError
from ockham.core.rates import AttentionRate, ProductRate, Rates
from ockham.core.registry import SAVINGS, SEAMS, techniques
from ockham.lab.advice import MOST_ROWS, Load, Predicted, advise, break_even, first_at

WEIGHT_S = 21e-12 / 16
"""Of one weight and row, at many rows."""
RATES = Rates(
    flops_per_s=1e11,
    read_bytes_per_s=1e10,
    products={
        "int8": ProductRate(
            rows=(1, 4, 16),
            weight_s=(2e-12, 5e-12, 21e-12),
            stream=0.5,
            exposed=0.0,
            value_s=0.0,
        )
    },
    attention=AttentionRate(cell_s=1e-9, key_s=1e-9, stream=1.0),
    loop_s=0.0,
    gate_value_s=0.0,
    rotation_value_s=0.0,
    logit_s=0.0,
    step_s=0.0,
    sequence_s=0.0,
)
COST = ModelCost(
    linear_flops=2 * 10**7,
    head_flops=10**6,
    dense_weight_bytes=10**7,
    head_weight_bytes=500_000,
    embedding_row_bytes=0,
    groups=(GroupCost(10, 4, 16, 1280, None, 2),),
    products=(
        ProductCost("int8", 1000, 1000, 10**6, 10),
        ProductCost("int8", 500, 1000, 500_000, 1, head=True),
    ),
)
READING_S = 10.5e6 / (1e10 * 0.5)
"""Of all weights; a cell of state takes 1280 bytes and 1.28e-7 s, longer than its arithmetic."""
CELL_S = 1280 / 1e10


def predicted(rates: Rates = RATES, **load: int) -> Predicted:
    return Predicted(COST, rates, 500, Load(**load))


def test_every_technique_says_what_it_saves() -> None:
    found = techniques()
    nothing = {f"{t.seam}/{t.name}" for t in found if not t.saves}
    assert nothing == {
        "format/fp32",
        "transform/nest",
        "reuse/none",
        "keep/all",
        "pattern/full",
        "drafter/none",
        "verifier/exact_match",
        "gate/whole",
        "policy/fcfs",
        "search/choices",
    }
    for technique in found:
        assert hasattr(technique.cls, "saves") or SEAMS[technique.seam].saves, technique.name
        assert set(technique.saves) <= set(SAVINGS), technique.name


def test_each_kind_of_saving_is_told_once_with_its_techniques() -> None:
    families = advise(COST, RATES, 500, Load()).families
    assert sorted(family.saves for family in families) == sorted(SAVINGS)
    for technique in techniques():
        name = f"{technique.seam}/{technique.name}"
        listed = {
            f.saves for f in families if name in (f.exact if technique.exact else f.approximate)
        }
        assert listed == set(technique.saves)


def test_the_first_number_is_found() -> None:
    assert first_at(lambda n: n >= 17, 1000) == 17
    assert first_at(lambda n: n >= 1, 1000) == 1
    assert first_at(lambda n: n >= 1000, 1000) == 1000
    assert first_at(lambda n: n > 1000, 1000) is None


def test_a_step_is_bound_by_reading_until_its_arithmetic_takes_as_long() -> None:
    """A weight is read in 2e-10 s, and takes 1.3125e-12 s for each of many rows: 152.4 rows."""
    assert predicted().read_bound_rows() == 152
    assert predicted().read_bound_rows("int8") == 152
    cached = replace(RATES, cache_bytes=2 * 10_500_000)
    assert predicted(cached).read_bound_rows() == 0
    # A cache that gives half as many bytes again in a second as memory (5e9) binds twice the rows.
    assert predicted(replace(cached, resident_bytes_per_s=2.5e9)).read_bound_rows() == 304
    family = advise(COST, cached, 500, Load()).families[0]
    assert family.verdict.startswith("saves no time: a cache holds the weights")
    assert not family.pays
    slow = replace(RATES, read_bytes_per_s=1.0)
    assert predicted(slow).read_bound_rows() == MOST_ROWS


def test_half_the_bytes_of_weights_take_half_of_reading_off() -> None:
    of = predicted(context=1)
    assert of.weights_gain(1) == pytest.approx(READING_S / 2 / (READING_S + CELL_S))
    assert of.weights_gain(100) == pytest.approx(
        10.5e6 * (2e-10 - 100 * WEIGHT_S) / (READING_S + 100 * CELL_S)
    )
    assert of.weights_gain(200) == 0.0
    family = advise(COST, RATES, 500, Load(context=1)).families[0]
    last = family.crossovers["pays_to_batch"]
    assert isinstance(last, int)
    assert of.weights_gain(last) >= 0.05 > of.weights_gain(last + 1)
    assert family.verdict.startswith(f"pays up to batch {last}; reading weights bounds a step")


def test_state_pays_from_the_context_where_half_of_it_is_a_twentieth() -> None:
    """Half of c cells take c / 2 * 1.28e-7 s off 2.1e-3 s and c * 1.28e-7 s."""
    found = advise(COST, RATES, 500, Load(context=4096)).families
    state = next(family for family in found if family.saves == "state bytes")
    assert state.crossovers["pays_from_context"] == 1824
    assert state.crossovers["equal_bytes_context"] == 8204  # 10.5e6 / 1280 = 8203.1
    assert state.share == pytest.approx(2048 * CELL_S / (READING_S + 4096 * CELL_S))
    assert state.pays
    assert state.verdict.startswith("pays from 1,824 tokens of context on;")
    two = advise(COST, RATES, 500, Load(context=128, batch=2)).families
    state = next(family for family in two if family.saves == "state bytes")
    assert state.crossovers["equal_bytes_context"] == 4102
    assert not state.pays


def test_state_in_a_window_never_becomes_as_many_bytes_as_weights() -> None:
    windowed = replace(COST, groups=(GroupCost(10, 4, 16, 1280, 256, 2),))
    found = advise(windowed, RATES, 500, Load()).families
    state = next(family for family in found if family.saves == "state bytes")
    assert state.crossovers["equal_bytes_context"] is None
    assert state.crossovers["pays_from_context"] is None
    assert not state.pays


def test_attention_of_a_prompt_pays_from_a_length_on() -> None:
    """Of whole blocks of 64: products of n rows, and keys up to the ends of their blocks."""

    def share(n: int) -> float:
        products = 10e6 * max(n * WEIGHT_S, 2e-10) + 0.5e6 * 2e-10
        keys = n * (n + 1) / 2 + (n // 64) * 64 * 63 / 2
        attention = max(10 * (n * 1e-9 + keys * 1e-9), n * CELL_S)
        return attention / 2 / (products + attention)

    of = predicted(prompt=1024)
    assert of.attention_gain(1024) == pytest.approx(share(1024))
    found = advise(COST, RATES, 500, Load()).families
    attention = next(family for family in found if family.saves == "attention")
    start = attention.crossovers["pays_from_prompt"]
    assert isinstance(start, int)
    block = start // 64 * 64
    assert share(block - 64) < 0.05 <= share(block + 64)


def test_drafts_break_even_where_accepted_tokens_make_up_for_the_time() -> None:
    assert break_even(1.5, 1) == pytest.approx(0.5)
    assert break_even(1.75, 2) == pytest.approx(0.5)
    assert break_even(0.9, 4) == pytest.approx(0.0, abs=1e-9)
    assert break_even(2.0, 1) is None
    # Rows are free while reading bounds the step: only their keys take time, and those are read.
    assert predicted(context=1000).verifying(1) == pytest.approx(
        (READING_S + 1001 * CELL_S) / (READING_S + 1000 * CELL_S)
    )
    many = advise(COST, RATES, 500, Load(context=1, batch=160)).families
    steps = next(family for family in many if family.saves == "steps")
    assert steps.pays is False
    assert steps.verdict.startswith("never pays at batch 160:")


def test_the_rate_of_requests_is_that_of_prompts_and_answers() -> None:
    of = predicted(context=64, batch=4, prompt=64, output=10)
    prompt, step = of.prompt(64).total, of.step(64, 4).total
    assert of.requests_per_s == pytest.approx(4 / (4 * prompt + 10 * step))


def test_what_is_told_has_each_verdict_and_the_load() -> None:
    found = advise(COST, RATES, 500, Load(context=4096))
    text = " ".join(" ".join(told(found, "a model")).split())
    assert "a step of batch 1 at 4,096 tokens of context" in text
    for family in found.families:
        assert f"{family.saves}: {SAVINGS[family.saves]}" in text
        assert family.verdict in text


def test_a_load_has_bounds() -> None:
    with pytest.raises(ConfigError, match="batch must be 1 to 4,096, got 0"):
        Load(batch=0)
    with pytest.raises(ConfigError, match="context must be 1 to 4,194,304, got 5,000,000"):
        Load(context=5_000_000)
