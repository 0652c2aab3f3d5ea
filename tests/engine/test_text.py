"""Stop strings end a text wherever the borders of its tokens fall."""

from hypothesis import given
from hypothesis import strategies as st

from ockham.engine.text import TextOutput


class Pieces:
    """A detokenizer whose token i is piece i of a text."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def finish(self) -> str:
        return self.rest


def run(pieces, stop, include=False, may_stop=True):
    """The deltas, and the stop string that was met."""
    text = TextOutput(lambda: Pieces(pieces), stop, include)
    deltas = []
    for token in range(len(pieces)):
        delta, found = text.push(token, may_stop=may_stop)
        deltas.append(delta)
        if found is not None:
            return deltas, found
    delta, found = text.finish()
    return [*deltas, delta], found


def first_stop(text, stop):
    found = [(text.find(s), i, s) for i, s in enumerate(stop) if s in text]
    return min(found) if found else None


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_the_text_ends_at_the_first_stop_string(pieces, stop, include):
    deltas, found = run(pieces, stop, include)
    shown, whole = "".join(deltas), "".join(pieces)
    if found is None:
        assert first_stop(whole, stop) is None
        assert shown == whole
        return
    # A stop string counts when it is complete: later pieces were never generated.
    seen = "".join(pieces[: len(deltas)])
    at, _, expected = first_stop(seen, stop)
    assert found == expected
    assert shown == seen[: at + len(expected) if include else at]


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.text("ab", min_size=1, max_size=4))
def test_text_is_held_back_only_while_it_may_be_a_stop_string(pieces, stop):
    text = TextOutput(lambda: Pieces(pieces), [stop], False)
    shown = ""
    for token in range(len(pieces)):
        delta, found = text.push(token, may_stop=True)
        shown += delta
        if found is not None:
            return
        held = "".join(pieces[: token + 1])[len(shown) :]
        assert stop.startswith(held)
        assert len(held) < len(stop)


def test_a_stop_string_across_three_tokens():
    assert run(["one E", "N", "D two"], ["END"]) == (["one ", "", ""], "END")


def test_min_tokens_lets_a_stop_string_pass():
    assert run(["a END b"], ["END"], may_stop=False)[1] is None


def test_bytes_that_never_became_a_character_are_shown_at_the_end():
    text = TextOutput(lambda: Pieces(["x"], rest="\ufffd"), ["END"], False)
    assert text.push(0, may_stop=True) == ("x", None)
    assert text.finish() == ("\ufffd", None)


def test_each_choice_starts_its_own_text():
    text = TextOutput(lambda: Pieces(["EN", "D"]), ["END"], False)
    text.push(0, may_stop=True)
    assert text.fresh().push(1, may_stop=True) == ("D", None)
