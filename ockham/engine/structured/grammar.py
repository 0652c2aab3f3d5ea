"""A compiled grammar, and where one sequence is in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ockham.core.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from ockham.engine.structured.vocabulary import GrammarVocabulary

Bits = npt.NDArray[np.uint32]
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")


def grammar_text(asked: StructuredOutputsParams) -> str:
    """What is asked for as a grammar of llguidance. Raises ValueError if it is none.

    A schema's properties come in its own order, as in OpenAI's API."""
    from llguidance import LLMatcher, grammar_from

    if asked.kind in ("json", "json_object"):
        flexible = not asked.disable_any_whitespace
        return LLMatcher.grammar_from_json_schema(
            asked.schema(), overrides={"whitespace_flexible": flexible}
        )
    if asked.choice is not None:
        texts = [_META.sub(r"\\\g<0>", text) for text in asked.choice]
        return LLMatcher.grammar_from_regex("|".join(f"({text})" for text in texts))
    if asked.regex is not None:
        return LLMatcher.grammar_from_regex(asked.regex)
    return grammar_from("grammar", asked.grammar or "")


class Grammar:
    """A grammar over a vocabulary. Sequences are each at a place of their own in it."""

    def __init__(self, vocabulary: GrammarVocabulary, text: str) -> None:
        """Compile a grammar of llguidance: up to seconds, without Python's lock. Raises ValueError,
        with the reason, if it cannot be, or allows no text."""
        from llguidance import LLMatcher

        self.vocabulary = vocabulary.size
        self.spells_all = vocabulary.spells_all
        self._matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0)
        self._raise()
        mask = GrammarState(self, self._matcher.deep_copy(), frozenset()).mask()
        self._raise()
        if not mask.any() or self._matcher.is_stopped():
            raise ValueError("it allows no text")

    def _raise(self) -> None:
        if self._matcher.is_error():
            raise ValueError(self._matcher.get_error())

    def begin(self, ends: frozenset[int]) -> GrammarState:
        """The place before the first token. `ends` are the tokens that may end a text that is
        complete."""
        return GrammarState(self, self._matcher.deep_copy(), ends)


class GrammarState:
    """A place in a grammar: a function of the tokens that came since its beginning.

    The tokens that may come next are those which some text of the grammar goes on with. Where it
    leaves only one run of bytes, they are the tokens that the tokenizer makes of it, and so only
    one may come.
    """

    def __init__(self, grammar: Grammar, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._ends = ends
        self._mask: Bits | None = None
        self._forced: tuple[int, ...] | None = None

    def fresh(self) -> GrammarState:
        """The place where this one began."""
        return self._grammar.begin(self._ends)

    def advance(self, token: int) -> None:
        """`token`, one of those that may come next, has come."""
        self._mask = self._forced = None
        if token not in self._ends:
            self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether nothing more may come, because the text is complete."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """What went wrong: a grammar may turn out to be too ambiguous to go on in it, or to need
        bytes that the tokenizer has no tokens for."""
        if not self._matcher.is_error():
            return None
        reason = self._matcher.get_error().partition("\n")[0]
        return f"the grammar cannot be followed any further ({reason})"

    def forced(self) -> Sequence[int]:
        """The only tokens that may come next, one after the other; empty if there is a choice."""
        if self._forced is None:
            tokens = () if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
            self._forced = tuple(tokens)
        return self._forced

    def mask(self) -> Bits:
        """Which tokens may come next: token t is bit t % 32 of word t // 32. All 0 after an error.
        The array is this state's own until it advances."""
        if self._mask is None:
            count = self._grammar.vocabulary
            words = np.zeros(count // 32 + 1, np.uint32)
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if self._matcher.is_error():
                words[:] = 0
            elif not self._grammar.spells_all:
                self._leave_what_spells(words)
            end = np.uint32(1 << count % 32)
            may_end = words[count // 32] & end
            words[count // 32] &= ~end
            for token in self._ends:
                bit = np.uint32(1 << token % 32)
                words[token // 32] &= ~bit
                if may_end:
                    words[token // 32] |= bit
            self._mask = words
        return self._mask

    def _leave_what_spells(self, words: Bits) -> None:
        """Where a run of bytes must come and the vocabulary has no tokens for it, the library's
        mask holds others: take them out."""
        if self.forced() or not self._matcher.compute_ff_bytes():
            return
        for token in np.flatnonzero(
            np.unpackbits(words.view(np.uint8), bitorder="little")
        ).tolist():
            if token < self._grammar.vocabulary and not self._matcher.validate_tokens([token]):
                words[token // 32] &= ~np.uint32(1 << token % 32)
