"""Which techniques can save time on a model and a machine, and from which sizes on: arithmetic over
the cost model and measured rates. Nothing is run, and nothing is said of quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec

from ockham.core.cost import ModelCost, Part
from ockham.core.errors import ConfigError
from ockham.core.rates import (
    Rates,
    StepSeconds,
    fits_cache,
    predict,
    products_seconds,
    state_fits_cache,
)
from ockham.core.registry import SAVINGS, techniques

WORTH = 0.05
"""A technique can pay where halving what it saves takes so much off the time."""
MOST_TOKENS = 1 << 22
"""Contexts and prompts are looked at up to here."""
MOST_ROWS = 1 << 12
DRAFTS = (1, 2, 4, 8)
USUAL_DRAFT = 4
SAMPLES = 8
BUSY = 2 / 3
"""Of what one server answers: then requests of one length that come at random wait as long as they
take to be answered (M/D/1: u / (2 - 2 u) = 1)."""

DECODE, PREFILL, ANSWERS, QUEUE = (
    "while tokens are generated",
    "while prompts are read",
    "in how answers are found",
    "where requests wait",
)
WHEN = {
    "weight bytes": DECODE,
    "rounding error": DECODE,
    "state bytes": DECODE,
    "steps": DECODE,
    "products": DECODE,
    "attention": PREFILL,
    "prompt rows": PREFILL,
    "tokens": ANSWERS,
    "queueing": QUEUE,
}
"""When each kind of saving shows, in the order in which they are told."""


class Load(msgspec.Struct, frozen=True):
    """What the advice is for: `batch` answers of `output` tokens at once, after prompts of `prompt`
    tokens, at a step that sees `context` tokens."""

    context: int = 2048
    batch: int = 1
    prompt: int = 1024
    output: int = 128

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            most = MOST_ROWS if name == "batch" else MOST_TOKENS
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must be 1 to {most:,}, got {getattr(self, name):,}.")


class Family(msgspec.Struct, frozen=True):
    """The techniques that save the same: whether they can pay, from where on, and which they are.

    `pays` is None where the requests decide: whether they share tokens, what they accept of drafts.
    `share` is what halving their saving takes off the time. `crossovers` have the sizes from (or
    to) which something holds, by what holds; None where no size does.
    """

    saves: str
    when: str
    pays: bool | None
    verdict: str
    share: float | None
    crossovers: dict[str, float | int | None]
    exact: tuple[str, ...]
    approximate: tuple[str, ...]


class Advice(msgspec.Struct, frozen=True):
    """All families, and the predicted step and prompt that the verdicts are of."""

    load: Load
    step_s: float
    step_shares: dict[str, float]
    prompt_s: float
    prompt_shares: dict[str, float]
    weight_bytes: int
    state_bytes: int
    families: tuple[Family, ...]


def first_at(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 1 to `most` for which something holds that goes on to hold; None if
    it never does."""
    if not holds(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def break_even(cost_ratio: float, drafted: int) -> float | None:
    """The share of drafted tokens that must be accepted, each by itself, so that a step of one row
    and so many drafted ones, which takes `cost_ratio` times as long as one without, gives as many
    tokens for its time: 1 + a + a^2 + ... = cost_ratio. None if even accepting all is too few."""
    if cost_ratio >= drafted + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        given = sum(middle**power for power in range(drafted + 1))
        low, high = (middle, high) if given < cost_ratio else (low, middle)
    return high


@dataclass(frozen=True)
class Predicted:
    """The steps of a model on a machine under a load."""

    cost: ModelCost
    rates: Rates
    vocabulary: int
    load: Load

    def step(self, context: int, batch: int, rows: int = 1) -> StepSeconds:
        """A step of so many sequences, each with so many rows that all want logits."""
        parts: Sequence[Part] = [(context, rows)] * batch
        return predict(self.cost, self.rates, parts, batch * rows, self.vocabulary)

    def prompt(self, tokens: int) -> StepSeconds:
        """A prompt, read in one step: chunks read the weights more often."""
        return predict(self.cost, self.rates, [(1, tokens)], 1, self.vocabulary)

    @cached_property
    def usual(self) -> StepSeconds:
        return self.step(self.load.context, self.load.batch)

    @cached_property
    def usual_prompt(self) -> StepSeconds:
        return self.prompt(self.load.prompt)

    # -- what halving takes off ------------------------------------------------------------------

    def weights_gain(self, batch: int) -> float:
        """The share of a step that half as many weight bytes take off, at the same arithmetic."""
        half = [msgspec.structs.replace(p, nbytes=p.nbytes // 2) for p in self.cost.products]
        cached = fits_cache(self.cost, self.rates, batch, batch)
        whole = self.step(self.load.context, batch)
        less = products_seconds(
            replace(self.cost, products=tuple(half)), self.rates, batch, batch, cached
        )
        return (whole.products - less) / whole.total

    def state_gain(self, context: int, batch: int) -> float:
        """The share of a step that half as many cells take off."""
        whole, half = self.step(context, batch), self.step((context + 1) // 2, batch)
        return (whole.attention - half.attention) / whole.total

    def attention_gain(self, tokens: int) -> float:
        """The share of a prompt's time that half of its attention takes off."""
        whole = self.prompt(tokens)
        return whole.attention / 2 / whole.total

    def products_gain(self) -> float:
        """The share of a step that half of the products take off."""
        return self.usual.products / 2 / self.usual.total

    # -- sizes -----------------------------------------------------------------------------------

    def read_bound_rows(self, name: str | None = None) -> int:
        """The most rows of a step for which reading the matrices (of one format) takes longer than
        their arithmetic, from memory or from the cache that holds them; 0 if it never does."""
        cached = fits_cache(self.cost, self.rates, 1, 1)
        chosen = [p for p in self.cost.products if name in (None, p.format) and not p.experts]
        reading = sum(p.count * p.nbytes / self._read_rate(p.format, cached) for p in chosen)

        def computes_longer(rows: int) -> bool:
            taken = sum(
                p.count * p.weights * self.rates.products[p.format].weight_seconds(rows)
                for p in chosen
            )
            return taken >= reading

        found = first_at(computes_longer, MOST_ROWS)
        return MOST_ROWS if found is None else found - 1

    def _read_rate(self, name: str, cached: bool) -> float:
        """Bytes of weights that products of a format read in a second."""
        if cached:
            return self.rates.resident_bytes_per_s
        return self.rates.read_bytes_per_s * self.rates.products[name].stream

    def equal_bytes(self) -> int | None:
        """The context at which a step of the batch reads as many bytes of state as of weights."""
        batch = self.load.batch
        weights = self.cost.weight_bytes(batch, batch)
        return first_at(
            lambda context: batch * self.cost.state_read_bytes(context, 1) >= weights, MOST_TOKENS
        )

    def verifying(self, drafted: int) -> float:
        """How many times as long a step takes with so many drafted tokens for each sequence."""
        return self.step(self.load.context, self.load.batch, drafted + 1).total / self.usual.total

    @property
    def requests_per_s(self) -> float:
        """Requests that are answered in a second where the batch is always full."""
        load = self.load
        return load.batch / (load.batch * self.usual_prompt.total + load.output * self.usual.total)


def advise(cost: ModelCost, rates: Rates, vocabulary: int, load: Load) -> Advice:
    """What can pay for a model of such a cost on a machine of such rates. Raises KeyError if the
    rates lack a format of the model."""
    of = Predicted(cost, rates, vocabulary, load)
    told = {
        "weight bytes": _weight_bytes,
        "rounding error": _rounding_error,
        "state bytes": _state_bytes,
        "steps": _steps,
        "products": _products,
        "attention": _attention,
        "prompt rows": _prompt_rows,
        "tokens": _tokens,
        "queueing": _queueing,
    }
    assert told.keys() == SAVINGS.keys() == WHEN.keys(), "each kind of saving has its advice"
    return Advice(
        load=load,
        step_s=of.usual.total,
        step_shares=_shares(of.usual),
        prompt_s=of.usual_prompt.total,
        prompt_shares=_shares(of.usual_prompt),
        weight_bytes=cost.weight_bytes(load.batch, load.batch),
        state_bytes=load.batch * cost.state_read_bytes(load.context, 1),
        families=tuple(told[kind](of) for kind in WHEN),
    )


def _shares(step: StepSeconds) -> dict[str, float]:
    names = ("products", "attention", "values", "loops", "logits", "bookkeeping")
    return {name: getattr(step, name) / step.total for name in names}


def _family(
    kind: str,
    pays: bool | None,
    verdict: str,
    share: float | None,
    **crossovers: float | int | None,
) -> Family:
    found = [t for t in techniques() if kind in t.saves]
    return Family(
        saves=kind,
        when=WHEN[kind],
        pays=pays,
        verdict=verdict,
        share=share,
        crossovers=crossovers,
        exact=tuple(f"{t.seam}/{t.name}" for t in found if t.exact),
        approximate=tuple(f"{t.seam}/{t.name}" for t in found if not t.exact),
    )


# -- one family each -----------------------------------------------------------------------------


def _weight_bytes(of: Predicted) -> Family:
    batch, share = of.load.batch, of.weights_gain(of.load.batch)
    most = of.read_bound_rows()
    until = first_at(lambda rows: of.weights_gain(rows) < WORTH, MOST_ROWS)
    last = MOST_ROWS if until is None else until - 1
    cached = fits_cache(of.cost, of.rates, 1, 1)
    if cached and last == 0:
        verdict = (
            "saves no time: a cache holds the weights, so that they are not read from memory; a "
            "format may compute faster"
        )
    elif last == 0:
        verdict = "saves no time: arithmetic takes longer than reading, even of one row"
    else:
        bound = f"reading weights bounds a step up to {_rows(most)}"
        verdict = f"{_upto(last, 'batch')}; {bound}"
        verdict += f"{' from a cache' * cached}; half the bytes take {share:.0%} off a step"
    if share < WORTH and last:
        verdict += f" of batch {batch:,}"
    formats = {p.format for p in of.cost.products}
    each = {f"read_bound_rows_{name}": of.read_bound_rows(name) for name in sorted(formats)}
    return _family(
        "weight bytes",
        share >= WORTH,
        verdict,
        share,
        pays_to_batch=last,
        read_bound_rows=most,
        **each,
    )


def _rounding_error(of: Predicted) -> Family:
    pays = of.weights_gain(of.load.batch) >= WORTH
    verdict = (
        "saves no time by itself: it lets fewer bits be enough, which pays where weight bytes do"
    )
    return _family("rounding error", pays, verdict, None)


def _state_bytes(of: Predicted) -> Family:
    load = of.load
    share = of.state_gain(load.context, load.batch)
    start = first_at(lambda c: of.state_gain(c, load.batch) >= WORTH, MOST_TOKENS)
    equal = of.equal_bytes()
    verdict = f"{_from(start)}; {_off('half of the cells', share)}"
    if equal is not None:
        verdict += f"; state is as many bytes as weights at {equal:,}"
    if state_fits_cache(of.cost, of.rates, load.batch * of.cost.state_read_bytes(load.context, 1)):
        verdict += "; a cache holds both"
    return _family(
        "state bytes",
        share >= WORTH,
        verdict,
        share,
        pays_from_context=start,
        equal_bytes_context=equal,
    )


def _steps(of: Predicted) -> Family:
    ratios = {drafted: of.verifying(drafted) for drafted in DRAFTS}
    needed = {drafted: break_even(ratio, drafted) for drafted, ratio in ratios.items()}
    usual, ratio = needed[USUAL_DRAFT], ratios[USUAL_DRAFT]
    took = f"a step with {USUAL_DRAFT} drafted tokens takes {ratio:.2f} times as long"
    if usual is None:
        verdict = f"never pays at batch {of.load.batch:,}: {took}"
    elif usual < 0.005:
        verdict = f"pays however few drafted tokens are accepted: {took}"
    else:
        verdict = f"pays where more than {usual:.0%} of drafted tokens are accepted: {took}"
    return _family(
        "steps",
        None if any(each is not None for each in needed.values()) else False,
        f"{verdict}, without what a drafter itself takes",
        None,
        **{f"break_even_of_{drafted}": share for drafted, share in needed.items()},
        **{f"step_times_with_{drafted}": ratio for drafted, ratio in ratios.items()},
    )


def _products(of: Predicted) -> Family:
    share, prompt = of.products_gain(), of.usual_prompt
    verdict = (
        f"{_off('half of the products', share)}, and {prompt.products / 2 / prompt.total:.0%} off "
        "a prompt"
    )
    return _family(
        "products",
        share >= WORTH,
        verdict,
        share,
        share_of_a_prompt=prompt.products / 2 / prompt.total,
    )


def _attention(of: Predicted) -> Family:
    share = of.attention_gain(of.load.prompt)
    start = first_at(lambda tokens: of.attention_gain(tokens) >= WORTH, MOST_TOKENS)
    equal = first_at(lambda t: of.prompt(t).attention >= of.prompt(t).products, MOST_TOKENS)
    verdict = f"{_from(start, 'prompt')}; {_off('half of it', share, 'prompt')}"
    if equal is not None:
        verdict += f"; attention takes as long as products at {equal:,}"
    return _family(
        "attention",
        share >= WORTH,
        verdict,
        share,
        pays_from_prompt=start,
        equal_seconds_prompt=equal,
    )


def _prompt_rows(of: Predicted) -> Family:
    prompt = of.usual_prompt.total
    answer = of.load.output * of.usual.total
    per_token = prompt / of.load.prompt
    disk = of.cost.state_written_bytes(1) / per_token
    share = prompt / 2 / (prompt + answer)
    verdict = (
        f"pays where prompts share tokens: each spares {per_token * 1e3:.3g} ms, and sharing half "
        f"of a prompt {share:.0%} of a request; from a store on disk that reads more than "
        f"{disk / 1e6:.3g} MB a second"
    )
    return _family(
        "prompt rows",
        None if share >= WORTH else False,
        verdict,
        share,
        seconds_of_a_token=per_token,
        disk_bytes_per_s=disk,
    )


def _tokens(of: Predicted) -> Family:
    load = of.load
    many = of.step(load.context, load.batch * SAMPLES).total / of.usual.total
    verdict = (
        f"pays where answers are searched for: a token of an answer alone takes "
        f"{of.usual.total / load.batch * 1e3:.3g} ms, and {SAMPLES} samples at once take "
        f"{many:.1f} times as long as one"
    )
    return _family("tokens", None, verdict, None, step_times_of_8_samples=many)


def _queueing(of: Predicted) -> Family:
    rate = of.requests_per_s
    verdict = (
        f"matters where more than {_rate(BUSY * rate)} come: two thirds of what a full batch of "
        f"{of.load.batch:,} answers"
    )
    return _family(
        "queueing", None, verdict, None, requests_per_s=rate, waits_from_per_s=BUSY * rate
    )


# -- words ---------------------------------------------------------------------------------------


def _rows(count: int) -> str:
    return "any number of rows" if count >= MOST_ROWS else f"{count:,} row{'s' * (count != 1)}"


def _upto(last: int, of: str) -> str:
    return f"pays at any {of}" if last >= MOST_ROWS else f"pays up to {of} {last:,}"


def _from(start: int | None, of: str = "context") -> str:
    if start is None:
        return f"pays at no {of} that was looked at"
    return f"pays at any {of}" if start == 1 else f"pays from {start:,} tokens of {of} on"


def _off(what: str, share: float, of: str = "step") -> str:
    return f"{what} less takes {share:.0%} off a {of}"


def _rate(per_s: float) -> str:
    return f"{per_s:.3g} requests a second" if per_s >= 1 else f"{per_s * 60:.3g} requests a minute"
