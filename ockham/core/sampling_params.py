"""How the next token of a sequence is chosen, under the names and defaults of vLLM.

The order in which parameters act is fixed, for every backend:

1.  log probabilities are taken from the unprocessed logits;
2.  `structured_outputs` and `allowed_token_ids` (everything else is masked), `bad_words`, the stop
    tokens while fewer than `min_tokens` were generated;
3.  `logit_bias`;
4.  `repetition_penalty`, then `frequency_penalty` and `presence_penalty`;
5.  division by `temperature` (0 means greedy: the largest logit, the lowest id on a tie);
6.  `min_p`, then `top_k`, then `top_p`;
7.  the token with the largest logit plus Gumbel noise (`core.noise`), the lowest id on a tie.
"""

from __future__ import annotations

import copy
import math
from numbers import Integral, Real
from typing import Any

import msgspec

from ockham.core.asks import Ask
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import MAX_TOKEN_ID, shown
from ockham.core.registry import asked_by, asks_by_method, asks_by_name, make_asks
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.core.thoughts import RepetitionDetectionParams, ThoughtMarks

MAX_LOGPROBS = 20
"""Most alternatives that `logprobs` and `prompt_logprobs` may ask for, as in vLLM's default."""
MAX_LOGPROB_TOKEN_IDS = 128
"""Most tokens of which `logprob_token_ids` may ask."""
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARACTERS = 4096
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARACTERS = 32768
"""Of all `bad_words` together: the engine tokenizes them between two steps."""
MAX_LIST_ENTRIES = 16384
"""Most entries of `stop_token_ids`, `logit_bias` and similar lists."""
MAX_N = 1024


class _TakesAsks(msgspec.StructMeta):
    """Lets a caller ask for a technique by a parameter of its name, whichever there are, and for a
    search by `search` too: what `asks` has by key."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        other = [name for name in given if name not in cls.__struct_fields__]
        names = [name for name in other if asked_by(name) is not None]
        if names:
            asks = asks_by_name({name: given.pop(name) for name in names})
            given["asks"] = {**(given.get("asks") or {}), **asks}
        if "search" in given:
            asks = asks_by_method("search", given.pop("search"))
            for key in asks.keys() & (given.get("asks") or {}).keys():
                name = key.partition("/")[2]
                raise InvalidRequest(
                    f"{name} is asked for twice, by search and by {name}; send one of them.",
                    "search",
                )
            given["asks"] = {**(given.get("asks") or {}), **asks}
        return super().__call__(*args, **given)


class SamplingParams(
    msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, metaclass=_TakesAsks
):
    """Sampling parameters of one request. Invalid values raise `InvalidRequest` naming the field.

    None means the same as leaving a parameter out (but for `max_tokens`). Numbers of other
    libraries become Python's, and a float that is whole is taken where an integer is meant.

    `max_tokens=None` means: until the model stops or the context is full; 0 is allowed only with
    `prompt_logprobs`, to score a prompt and generate nothing. `top_k` of 0 or -1 is
    off. `seed=None` takes a fresh seed for each request. `logprobs=k` returns the chosen token and
    the `k` likeliest; `prompt_logprobs=k` the same for each prompt token but the first.
    `logprob_token_ids` are further tokens whose log probabilities `logprobs` returns.

    With `structured_outputs` a text that is complete ends at once ("stop"), and its model may end
    it only where it may end; with `ignore_eos` it ends only where it must.

    A text whose thought stands between the marks of `thought` has an answer after it: there, and
    not in the thought, `stop` and `stop_token_ids` end it. A thought of `thinking_token_budget`
    tokens is ended by `thinking_closing_text` and the closing mark, which are written in the
    model's place. `repetition_detection` ends a text that repeats itself ("repetition").

    `asks` is what is asked of techniques that have a say in how tokens are chosen, by key (see
    `core.asks`). A technique may be asked for by a parameter of its name as well, and a search by
    `search={"method": NAME, ...}`.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int = 0
    max_tokens: int | None = 16
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    thinking_token_budget: int | None = None
    thinking_closing_text: str | None = None
    thought: ThoughtMarks | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    asks: dict[str, Any] | None = None

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list, whichever way it was given."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def sequences(self) -> int:
        """Sequences that run at once for a request with these parameters."""
        asks: dict[str, Ask] = self.asks or {}
        return max([self.n, *(ask.sequences(self.n) for ask in asks.values())])

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def clone(self) -> SamplingParams:
        """A copy that shares nothing with this one."""
        return copy.deepcopy(self)

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            if getattr(self, name) is None:
                self._set(name, default)
        for name, low, high in _RANGES:
            if getattr(self, name) is not None:
                self._set(name, _number(name, getattr(self, name), low, high))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(
                    f"{name} must be true or false, got {shown(getattr(self, name))}.", name
                )
        if self.top_p == 0.0:
            raise InvalidRequest("top_p must be above 0, got 0.0; use temperature=0.", "top_p")
        if self.repetition_penalty == 0.0:
            raise InvalidRequest("repetition_penalty must be above 0.", "repetition_penalty")
        if not self.spaces_between_special_tokens:
            raise InvalidRequest(
                "spaces_between_special_tokens=False is not supported: fast tokenizers, the only "
                "ones used here, never add such spaces; leave it out.",
                "spaces_between_special_tokens",
            )
        if self.max_tokens == 0 and (self.prompt_logprobs is None or self.n != 1):
            raise InvalidRequest(
                "max_tokens must be at least 1, got 0; only a request with prompt_logprobs and "
                "n=1 may generate nothing.",
                "max_tokens",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).",
                "min_tokens",
            )
        self._check_strings("stop", self.stop_strings, MAX_STOP_STRINGS)
        self._check_strings("bad_words", self.bad_words or [], MAX_BAD_WORDS)
        characters = sum(map(len, self.bad_words or ()))
        if characters > MAX_BAD_WORD_CHARACTERS:
            raise InvalidRequest(
                f"bad_words have {characters} characters together, at most "
                f"{MAX_BAD_WORD_CHARACTERS}; leave some out.",
                "bad_words",
            )
        for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
            if getattr(self, name) is not None:
                self._set(name, _token_ids(name, getattr(self, name)))
        self._check_logprob_token_ids()
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids must not be empty.", "allowed_token_ids")
        structured = self.structured_outputs
        if structured is not None and not isinstance(structured, StructuredOutputsParams):
            raise InvalidRequest(
                f"structured_outputs must be StructuredOutputsParams, got {shown(structured)}.",
                "structured_outputs",
            )
        self._check_thought()
        if self.logit_bias is not None:
            self._set("logit_bias", _biases(self.logit_bias))
        self._check_asks()

    def _check_logprob_token_ids(self) -> None:
        name, ids = "logprob_token_ids", self.logprob_token_ids or ()
        if len(ids) > MAX_LOGPROB_TOKEN_IDS:
            raise InvalidRequest(
                f"{name} has {len(ids)} entries, at most {MAX_LOGPROB_TOKEN_IDS}.", name
            )
        if ids and self.logprobs is None:
            raise InvalidRequest(f"{name} needs logprobs; logprobs=0 is enough.", name)

    def _check_thought(self) -> None:
        for name, kind in _STRUCTURES.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                try:
                    self._set(name, msgspec.convert(value, kind))
                except msgspec.ValidationError as error:
                    raise InvalidRequest(f"{name} is wrong: {error}.", name) from None
            elif value is not None and not isinstance(value, kind):
                raise InvalidRequest(f"{name} must be {kind.__name__}, got {shown(value)}.", name)
        text = self.thinking_closing_text
        if text is None:
            return
        if not isinstance(text, str) or len(text) > MAX_STOP_STRING_CHARACTERS:
            raise InvalidRequest(
                f"thinking_closing_text must be a text of at most {MAX_STOP_STRING_CHARACTERS} "
                f"characters, got {shown(text)}.",
                "thinking_closing_text",
            )

    def _check_asks(self) -> None:
        asks = make_asks({} if self.asks is None else self.asks)
        self._set("asks", asks or None)
        for key, ask in asks.items():
            if ask.named_at is not None:
                raise InvalidRequest(
                    f"{key} goes with a prompt and is no sampling parameter; ask for it with "
                    f"{ask.named_at}.",
                    "asks",
                )
            ask.check_params(self)

    @staticmethod
    def _check_strings(name: str, values: Any, most: int) -> None:
        if not isinstance(values, list):
            raise InvalidRequest(f"{name} must be a list of strings, got {shown(values)}.", name)
        if len(values) > most:
            raise InvalidRequest(f"{name} has {len(values)} entries, at most {most}.", name)
        for value in values:
            if not isinstance(value, str) or not value:
                raise InvalidRequest(f"{name} entries must be non-empty strings.", name)
            if len(value) > MAX_STOP_STRING_CHARACTERS:
                raise InvalidRequest(
                    f"an entry of {name} has {len(value)} characters, at most "
                    f"{MAX_STOP_STRING_CHARACTERS}.",
                    name,
                )

    def _set(self, name: str, value: Any) -> None:
        """Put a value into the form that everything after this relies on."""
        if value is not getattr(self, name):
            msgspec.structs.force_setattr(self, name, value)

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raise `InvalidRequest` if a token id named here is not one of `vocabulary` ids."""
        for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias"):
            named = getattr(self, name)
            if named and max(named) >= vocabulary:
                token = next(token for token in named if token >= vocabulary)
                raise InvalidRequest(
                    f"{name} names token {token}, but the vocabulary ends at {vocabulary - 1}.",
                    name,
                )


def _number(name: str, value: Any, low: float, high: float) -> float:
    """`value` as the kind of number that the parameter is. Raises `InvalidRequest`."""
    whole = name not in _FLOATS
    what = "an integer" if whole else "a number"
    wrong = InvalidRequest(f"{name} must be {what} in [{low}, {high}], got {shown(value)}.", name)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong
    number: Any = int(value) if isinstance(value, Integral) else value
    # Compared before anything is converted: an integer may be too large for a float.
    if not low <= number <= high or (whole and number != math.floor(number)):
        raise wrong
    return int(number) if whole else float(number)


def _token_ids(name: str, ids: Any) -> list[int]:
    """`ids` as a list of token ids. Raises `InvalidRequest`."""
    if not isinstance(ids, list):
        raise InvalidRequest(f"{name} must be a list of token ids, got {shown(ids)}.", name)
    _check_count(name, len(ids))
    # Each of a request's prompts reads the list anew: what came as JSON is plain integers, and is
    # looked at without a call for each.
    if ids and set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= MAX_TOKEN_ID:
        return list(ids)
    return [_token_id(name, token) for token in ids]


def _token_id(name: str, token: Any) -> int:
    whole = isinstance(token, Integral) or (isinstance(token, float) and token.is_integer())
    if isinstance(token, bool) or not whole or not 0 <= token <= MAX_TOKEN_ID:
        raise InvalidRequest(
            f"{name} holds {shown(token)}, which is not a token id (0 to {MAX_TOKEN_ID}).", name
        )
    return int(token)


def _biases(biases: Any) -> dict[int, float]:
    """Token id -> bias. Raises `InvalidRequest`."""
    name = "logit_bias"
    if not isinstance(biases, dict):
        raise InvalidRequest(f"{name} must map token ids to biases, got {shown(biases)}.", name)
    _check_count(name, len(biases))
    if (
        biases
        and set(map(type, biases)) == {int}
        and set(map(type, biases.values())) == {float}
        and min(biases) >= 0
        and max(biases) <= MAX_TOKEN_ID
        and all(-100.0 <= bias <= 100.0 for bias in biases.values())
    ):
        return dict(biases)
    found: dict[int, float] = {}
    for token, bias in biases.items():
        number = _token_id(name, token)
        wrong = isinstance(bias, bool) or not isinstance(bias, Real)
        if wrong or not -100.0 <= bias <= 100.0:
            raise InvalidRequest(
                f"{name} of token {number} must lie in [-100, 100], got {shown(bias)}.", name
            )
        found[number] = float(bias)
    return found


def _check_count(name: str, count: int) -> None:
    if count > MAX_LIST_ENTRIES:
        raise InvalidRequest(f"{name} has {count} entries, at most {MAX_LIST_ENTRIES}.", name)


_FLOATS = {
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
}
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("n", 1, MAX_N),
    ("temperature", 0.0, 100.0),
    ("top_k", -1, 2**31 - 1),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("min_tokens", 0, 2**31 - 1),
    ("max_tokens", 0, 2**31 - 1),
    ("thinking_token_budget", 0, 2**31 - 1),
    ("seed", -(2**63), 2**64 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
)
_STRUCTURES: dict[str, type[msgspec.Struct]] = {
    "thought": ThoughtMarks,
    "repetition_detection": RepetitionDetectionParams,
}
_SWITCHES = (
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)
_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in msgspec.structs.fields(SamplingParams)
    if field.default is not None and field.name != "max_tokens"
}
"""What None means for the parameters that cannot be None."""
