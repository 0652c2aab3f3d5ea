"""Keys of state tell tenants and techniques apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ockham.core.state_key import salt_of, state_key

SALTS = st.text(st.sampled_from('a/"\x1e[],:'), max_size=6)
DESCRIBED = st.lists(SALTS, max_size=3)


def test_a_salt_alone_is_its_own_key() -> None:
    assert state_key("tenant") == "tenant"
    assert state_key("") == ""


@given(SALTS, DESCRIBED, SALTS, DESCRIBED)
def test_no_two_have_the_same_key(
    salt: str, altering: list[str], other: str, others: list[str]
) -> None:
    same = state_key(salt, altering) == state_key(other, others)
    assert same == ((salt, altering) == (other, others))


@given(SALTS, DESCRIBED)
def test_the_salt_can_be_read_off_the_key(salt: str, altering: list[str]) -> None:
    assert salt_of(state_key(salt, altering)) == salt


def test_who_names_a_salt_like_a_key_gets_another_key() -> None:
    key = state_key("tenant", ["gate/quarter:null:{}"])
    assert state_key(key) != key
