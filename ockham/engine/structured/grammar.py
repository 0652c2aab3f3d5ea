"""A compiled grammar, and where one sequence is in it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import wait
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.structured import schema
from ockham.engine.structured.background import Background, Look

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from ockham.engine.structured.vocabulary import GrammarVocabulary

Bits = npt.NDArray[np.uint32]

QUICK_S = 0.01
"""CPU time of a quick mask. A grammar of which one took longer is slow."""
CONSUME_S = 0.002
"""The same for taking in a token, for which the library holds Python's lock."""
MOST_CONSUME_S = 0.01
"""Taking in a token that takes longer ends its request."""
LATE_S = 2.0
"""So does finding out what may come next."""
WHITE_SPACE = r"( |\n[ \t]{0,8})?"
"""What JSON may have between its tokens unless a request says otherwise."""
_ESCAPES = '"\\bfnrt'
"""What may follow a backslash in a string: no `u`, by which the name of a property could be written
in another way and its schema be passed by."""
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")
_GBNF = re.compile(r"^\s*[A-Za-z0-9_-]+\s*::=", re.MULTILINE)
_NO_TEXT = "NoExtension"
"""How the library calls a place where nothing may come."""
_STATES = 50_000
"""Of a lexer, at up to 2 KB each."""


def grammar_text(asked: StructuredOutputsParams) -> str:
    """What is asked for as a grammar of llguidance. Raises ValueError if it is none.

    A schema's properties come in its own order, as in OpenAI's API."""
    from llguidance import LLMatcher, grammar_from

    if asked.within is not None:
        body = _rule_body(grammar_text(msgspec.structs.replace(asked, within=None)))
        return f"{asked.within}answer: {body}\n"
    if asked.kind in ("json", "json_object"):
        text = asked.schema()
        schema.check(text)
        return LLMatcher.grammar_from_json_schema(
            text,
            overrides={
                "whitespace_flexible": not asked.disable_any_whitespace,
                "whitespace_pattern": _white_space(asked),
                "json_allowed_escapes": _ESCAPES,
                "coerce_one_of": False,
                "lenient": False,
            },
        )
    if asked.choice is not None:
        texts = [_META.sub(r"\\\g<0>", text) for text in asked.choice]
        return LLMatcher.grammar_from_regex("|".join(f"({text})" for text in texts))
    if asked.regex is not None:
        return LLMatcher.grammar_from_regex(asked.regex)
    text = asked.grammar or ""
    return grammar_from("gbnf" if _GBNF.search(text) else "lark", text)


def _rule_body(text: str) -> str:
    """A grammar, as the library has it, as the body of one rule."""
    if not text.startswith("{"):
        return f"%lark {{\n{text}\n}}"
    # The library writes an expression as a grammar of one rule, with what must be escaped.
    written: str = json.loads(text)["grammars"][0]["lark_grammar"]
    return written.removeprefix("start:").strip()


def is_suspect(asked: StructuredOutputsParams) -> bool:
    """Whether it has what the library's limits do not bound: expressions that must hold, or must
    not hold, at once with others. To suspect too much costs little."""
    if asked.grammar is not None or asked.within is not None:
        text = f"{asked.grammar or ''}{asked.within or ''}"
        return any(sign in text for sign in "&~%")
    if asked.json is None:
        return False
    text = asked.schema()
    return '"pattern' in text or (isinstance(asked.json, str) and "\\u" in text)


def _white_space(asked: StructuredOutputsParams) -> str | None:
    if asked.disable_any_whitespace:
        return None
    return WHITE_SPACE if asked.whitespace_pattern is None else asked.whitespace_pattern


class Grammar:
    """A grammar over a vocabulary. Sequences are each at a place of their own in it.

    The masks of a grammar that is `watched` are worked out in the background's threads, and the
    engine waits a moment for them. If it is `slow`, tokens are taken in there too, and the engine
    does not wait.
    """

    def __init__(
        self,
        vocabulary: GrammarVocabulary,
        text: str,
        background: Background | None = None,
        *,
        watched: bool = False,
    ) -> None:
        """Compile a grammar of llguidance: up to seconds, without Python's lock. Raises ValueError,
        with the reason, if it cannot be, or allows no text. Without a background it is never
        watched."""
        from llguidance import LLMatcher, LLParserLimits

        self.vocabulary = vocabulary.size
        self.spells_all = vocabulary.spells_all
        self.background = background
        self.watched = watched and background is not None
        self.slow = False
        self.longest_s = 0.0
        """What its slowest mask took."""
        limits = LLParserLimits(max_lexer_states=_STATES)
        self._matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=limits)
        self._raise()
        first = GrammarState(self, self._matcher.deep_copy(), frozenset())
        self.note(first.look())
        if first.error is not None and _NO_TEXT not in first.error:
            raise ValueError(first.error)
        if not first.mask().any() or self._matcher.is_stopped():
            raise ValueError("it allows no text")
        self._first = first.seen

    def _raise(self) -> None:
        if self._matcher.is_error():
            raise ValueError(schema.explain(self._matcher.get_error()))

    def note(self, looked_s: float = 0.0, consumed_s: float = 0.0) -> None:
        """Finding a mask took so much CPU time, or taking a token in."""
        self.longest_s = max(self.longest_s, looked_s)
        if self.background is not None and (looked_s > QUICK_S or consumed_s > CONSUME_S):
            self.watched = self.slow = True

    def begin(self, ends: frozenset[int]) -> GrammarState:
        """The place before the first token. `ends` are the tokens that may end a text that is
        complete."""
        return GrammarState(self, self._matcher.deep_copy(), ends, self._first)


class GrammarState:
    """A place in a grammar: a function of the tokens that came since its beginning.

    The tokens that may come next are those which some text of the grammar goes on with. Where it
    leaves only one run of bytes, they are the tokens that the tokenizer makes of it, and so only
    one may come.
    """

    def __init__(
        self,
        grammar: Grammar,
        matcher: LLMatcher,
        ends: frozenset[int],
        seen: tuple[tuple[int, ...], Bits] | None = None,
    ) -> None:
        """`seen` is what is forced here and the library's mask, if they are known."""
        self._grammar = grammar
        self._matcher = matcher
        self._ends = ends
        self._mask: Bits | None = None
        self._forced: tuple[int, ...] | None = None
        self._words: Bits | None = None
        if seen is not None:
            self._forced, self._words = seen
        self._unread: list[int] = []
        self._look: Look | None = None
        self._broken: str | None = None

    def fresh(self) -> GrammarState:
        """The place where this one began."""
        return self._grammar.begin(self._ends)

    def fork(self, tokens: Sequence[int]) -> GrammarState:
        """Another place that is the same as this one, which `tokens` have led to. If this one is
        still being worked out, the other is worked out from the beginning."""
        if self._look is None and not self._unread:
            twin = GrammarState(self._grammar, self._matcher.deep_copy(), self._ends)
            twin._forced, twin._words, twin._broken = self._forced, self._words, self._broken
            return twin
        twin = self.fresh()
        twin._forced = twin._words = None
        twin._unread = [token for token in tokens if token not in self._ends]
        return twin

    def advance(self, token: int) -> None:
        """`token`, one of those that may come next, has come."""
        self._settle()
        self._mask = self._forced = self._words = None
        if token in self._ends:
            return
        if self._grammar.slow:
            self._unread.append(token)
        else:
            self._consume(token)

    # -- without waiting -----------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether all that follows is known, or quick to find. If not, it is being worked out."""
        background = self._grammar.background
        if not self._grammar.watched or background is None or self._words is not None:
            return True
        if self._look is None:
            self._look = background.submit(self._grammar.longest_s, self.look)
        quick = not self._grammar.slow and background.wait(self._look)
        if not quick and not self._look.done.done():
            return False
        self._settle()
        return True

    @property
    def slow(self) -> bool:
        """Whether several places in a row cannot be reached within one step."""
        return self._grammar.slow

    @property
    def late(self) -> bool:
        """Whether what comes next has been worked on for so long that it should be given up."""
        return self._look is not None and self._look.is_late(LATE_S)

    def give_up(self) -> str:
        """Leave a place that is late, for good; what to say of it."""
        if self._look is not None and self._grammar.background is not None:
            self._grammar.background.abandon(self._look)
        return (
            "the grammar cannot be followed any further (finding out what may come next takes "
            f"longer than {LATE_S:g} s)"
        )

    def wait(self, timeout_s: float) -> None:
        """Sleep until it may be ready."""
        if self._look is not None:
            wait([self._look.done], timeout_s)

    # -- what comes next -----------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether nothing more may come, because the text is complete."""
        self._settle()
        return self._matcher.is_stopped() and self.error is None

    @property
    def error(self) -> str | None:
        """What went wrong: a grammar may turn out to be too ambiguous to go on in it, or to need
        bytes that the tokenizer has no tokens for."""
        self._settle()
        if self._broken is not None:
            return self._broken
        if not self._matcher.is_error():
            return None
        reason = self._matcher.get_error().partition("\n")[0]
        return f"the grammar cannot be followed any further ({reason})"

    def forced(self) -> Sequence[int]:
        """The only tokens that may come next, one after the other; empty if there is a choice."""
        self._settle()
        return self._find_forced()

    def mask(self) -> Bits:
        """Which tokens may come next: token t is bit t % 32 of word t // 32. All 0 after an error.
        The array is this state's own until it advances."""
        self._settle()
        if self._mask is None:
            if self._words is None:
                self._grammar.note(self.look())
            words = self._find_words().copy()
            count = self._grammar.vocabulary
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

    @property
    def seen(self) -> tuple[tuple[int, ...], Bits]:
        """What another state at this place may begin with."""
        return self._find_forced(), self._find_words()

    def look(self) -> float:
        """Take in what came and find out what comes next; the CPU time of the latter."""
        for token in self._unread:
            self._consume(token)
        self._unread = []
        began_s = time.thread_time()
        self._find_forced()
        self._find_words()
        return time.thread_time() - began_s

    def _settle(self) -> None:
        """A matcher is used by one thread at a time."""
        look, self._look = self._look, None
        if look is not None:
            self._grammar.note(look.done.result())
        elif self._unread:
            self._grammar.note(self.look())

    def _consume(self, token: int) -> None:
        began_s = time.thread_time()
        self._matcher.consume_token(token)
        took_s = time.thread_time() - began_s
        self._grammar.note(consumed_s=took_s)
        if took_s > MOST_CONSUME_S and self._grammar.background is not None:
            self._broken = (
                "the grammar cannot be followed any further (the text so far can be read in too "
                f"many ways: one more token takes {took_s:.2g} s)"
            )

    def _find_forced(self) -> tuple[int, ...]:
        if self._forced is None:
            over = self._matcher.is_stopped() or self._broken is not None
            tokens = () if over else self._matcher.compute_ff_tokens()
            self._forced = tuple(tokens)
        return self._forced

    def _find_words(self) -> Bits:
        """The library's mask, whose last bit says that the text may end."""
        if self._words is None:
            count = self._grammar.vocabulary
            words = np.zeros(count // 32 + 1, np.uint32)
            if forced := self._find_forced():
                words[forced[0] // 32] = 1 << forced[0] % 32
            else:
                self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if self._matcher.is_error() or self._broken is not None:
                words[:] = 0
            elif not self._grammar.spells_all:
                self._leave_what_spells(words)
            self._words = words
        return self._words

    def _leave_what_spells(self, words: Bits) -> None:
        """Where a run of bytes must come and the vocabulary has no tokens for it, the library's
        mask holds others: take them out."""
        if self._find_forced() or not self._matcher.compute_ff_bytes():
            return
        for token in np.flatnonzero(
            np.unpackbits(words.view(np.uint8), bitorder="little")
        ).tolist():
            if token < self._grammar.vocabulary and not self._matcher.validate_tokens([token]):
                words[token // 32] &= ~np.uint32(1 << token % 32)
