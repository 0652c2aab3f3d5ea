"""The queue is bounded, and whoever fills it shuts nobody else out."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ockham.api.server.gate import Gate
from ockham.core.errors import InvalidRequest, Overloaded


def hold(gate: Gate, stack: ExitStack, tenant: str, sequences: int = 1) -> bool:
    """Whether so many sequences of a tenant are let in."""
    try:
        stack.enter_context(gate.admit(sequences, tenant))
    except Overloaded:
        return False
    return True


def test_a_tenant_alone_has_the_whole_queue() -> None:
    with ExitStack() as stack:
        gate = Gate(2, 8)
        assert [hold(gate, stack, "a") for _ in range(11)] == [True] * 10 + [False]
    assert (gate.sequences, gate.requests) == (0, 0)


def test_who_fills_the_queue_is_refused_and_the_others_are_not() -> None:
    gate = Gate(2, 8)
    with ExitStack() as stack:
        while hold(gate, stack, "flood"):
            pass
        assert [hold(gate, stack, "b") for _ in range(6)] == [True] * 5 + [False]
        assert hold(gate, stack, "c", 3)
        assert not hold(gate, stack, "c")
        assert not hold(gate, stack, "flood")


def test_a_refusal_tells_nothing_of_others() -> None:
    gate = Gate(3, 10)
    with ExitStack() as stack:
        while hold(gate, stack, "flood"):
            pass
        while hold(gate, stack, "b"):
            pass
        with pytest.raises(Overloaded) as caught:
            gate.check(1, "b")
    assert "6 completions of yours" in str(caught.value)
    assert "13" not in str(caught.value)


def test_what_could_never_be_let_in_is_refused_for_good() -> None:
    with pytest.raises(InvalidRequest):
        Gate(2, 8).check(11, "a")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6), st.booleans()), max_size=200))
def test_the_queue_stays_bounded_and_empties(events: list[tuple[int, int, bool]]) -> None:
    gate, inside = Gate(4, 16), []
    for tenant, sequences, leaves in events:
        if leaves and inside:
            inside.pop().close()
        stack = ExitStack()
        if hold(gate, stack, f"t{tenant}", sequences):
            inside.append(stack)
        assert gate.sequences <= 20 * sum(1 / n for n in range(1, 11))
    for stack in inside:
        stack.close()
    assert (gate.sequences, gate.requests) == (0, 0)
    assert not gate._held
