"""Each head visits blocks of a prompt's keys by a rule of its own, found by a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from ockham.attention.blocks import at_least
from ockham.attention.head_recalls import (
    SHARES,
    VERSION,
    HeadRecall,
    HeadRecalls,
    Place,
    Rule,
    assigned,
    check_heads,
    foretold,
    read_recalls,
)
from ockham.attention.prompts import BlocksOfPrompt
from ockham.core.arrays import Doubles
from ockham.core.asks import Ask, merged
from ockham.core.choices import BY_HEAD, LATEST, LINES, RULES, STRIDES, Choice
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, Calibration, QueryBlock, SequencePattern
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.reference.choosing_together import HeadRule

RuleName = Literal["latest", "lines", "means"]


class MInferenceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """While a prompt is read, heads compute a `share` of full attention on average: with `heads`, a
    file that `ockham calibrate` wrote, each as large a part and by the rule that was found best for
    it; with a `rule`, or without a file, all heads alike by that rule (`latest`, `lines` or
    `means`; else `lines`). `stride`, 8 or 16: `lines` looks at one row of so many. The first
    `sink_blocks` and the rows' own block are visited in any case. The first `dense_layers` layers,
    and the prompt's `last_tokens`, see all. What a request leaves out of its ask is taken from
    here."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share": (0.25, 0.5)}

    heads: str | None = None
    share: float = 0.5
    rule: RuleName | None = None
    stride: int = 16
    sink_blocks: int = 1
    dense_layers: int = 0
    last_tokens: int = 128

    def __post_init__(self) -> None:
        try:
            _check(self)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class MInferenceAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request, but for the file."""

    share: float | None = None
    rule: RuleName | None = None
    stride: int | None = None
    sink_blocks: int | None = None
    dense_layers: int | None = None
    last_tokens: int | None = None

    def __post_init__(self) -> None:
        try:
            _check(self)
        except ValueError as error:
            raise InvalidRequest(str(error), "minference") from None


@register("pattern", "minference", exact=False, books=("minference",), paper="368")
class MInference:
    """While a prompt is read, each head visits the blocks of keys that a rule of its own finds.

    Some heads look at the beginning of a text and nearby (the A-shape), some along columns and
    diagonals of the matrix of scores (vertical-slash), some at blocks anywhere (block-sparse).
    Which head does what changes little from text to text, so that it is found once, offline
    (MInference, Jiang et al. 2024, arXiv:2407.02490; here for the query heads of a key-value head
    together, on blocks of 64 rows and 64 keys).

    The paper estimates columns and diagonals by the last 64 queries of a prompt, so that they
    depend on how it ends. Here each block of rows estimates its own, by a few of its rows: a row's
    state follows from the text up to the end of its block, and requests that ask the same share it.
    Where the last tokens of a prompt begin depends on its length; the state from there on is nobody
    else's. Measured by `ockham techniques measure minference`; heads are found by `ockham calibrate
    minference`.
    """

    saves: ClassVar[tuple[str, ...]] = ("attention",)
    name: ClassVar[str] = "minference"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[msgspec.Struct]] = MInferenceOptions
    Ask: ClassVar[type[Ask]] = MInferenceAsk
    trial: ClassVar[dict[str, object]] = {"share": 0.1, "sink_blocks": 0, "last_tokens": 1}
    """An ask that leaves keys out of prompts of more than two blocks."""

    def __init__(self, options: MInferenceOptions | None = None) -> None:
        """Raises ModelError for a file that is none of this technique's."""
        self.options = options or MInferenceOptions()
        self._recalls: HeadRecalls | None = None
        self._digest = ""
        if self.options.heads is not None:
            self._file = Path(self.options.heads).expanduser()
            self._recalls, self._digest = read_recalls(self._file, self.name)

    def identity(self, ask: MInferenceAsk) -> str:
        """What is asked, and what the file holds."""
        return f"{msgspec.json.encode(ask, order='sorted').decode()}{self._digest}"

    def open(self, ask: MInferenceAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        """See `Pattern`."""
        numbers = merged(self.options, ask)
        rules = self._rules(numbers, groups)
        found: list[Choice | None] = []
        for group in groups:
            layers = tuple(layer >= numbers.dense_layers for layer in group.layers)
            heads = [
                [rules.get((layer, head), (LATEST, 1.0)) for head in range(group.kv_heads)]
                for layer in group.layers
            ]
            choice = Choice(
                BY_HEAD,
                layers,
                first=0,
                sinks=numbers.sink_blocks,
                local=1,
                stride=numbers.stride,
                rules=tuple(tuple(rule for rule, _ in each) for each in heads),
                rule_shares=tuple(tuple(share for _, share in each) for each in heads),
            )
            found.append(choice if group.window is None and any(layers) else None)
        return BlocksOfPrompt(tuple(found), numbers.last_tokens) if any(found) else None

    def _rules(
        self, numbers: MInferenceOptions, groups: Sequence[AttentionGroup]
    ) -> dict[Place, Rule]:
        """Those of the heads of layers without a window that are not dense."""
        if self._recalls is not None:
            check_heads(self._recalls, groups, self.name, str(self._file))
            if numbers.rule is None:
                layers = {layer for group in groups for layer in group.layers}
                dense = frozenset(each for each in layers if each < numbers.dense_layers)
                return assigned(self._recalls, numbers.share, dense)
        rule = LINES if numbers.rule is None else RULES.index(numbers.rule)
        return {
            (layer, head): (rule, numbers.share)
            for group in groups
            if group.window is None
            for layer in group.layers
            for head in range(group.kv_heads)
        }

    def calibration(self) -> Calibration:
        """See `Calibrated`."""
        return HeadSearch(self.name, self.options)

    def setting(self, file: str) -> str:
        """See `Calibrated`."""
        return f"--attention-pattern {self.name}:heads={file}"


class HeadSearch(Calibration):
    """Adds up what each rule would have recalled of each head's attention, at each share of the
    blocks, while the model reads with full attention."""

    def __init__(self, name: str, options: MInferenceOptions) -> None:
        self._name = name
        self._choice = Choice(
            BY_HEAD, (True,), sinks=options.sink_blocks, local=1, stride=options.stride
        )
        self._sums: dict[Place, Doubles] = {}
        self._counts: dict[Place, int] = {}

    def saw(self, block: QueryBlock) -> None:
        """See `Calibration`."""
        kv_heads = block.keys.shape[1]
        repeat = block.queries.shape[1] // kv_heads
        for head in range(kv_heads):
            queries = block.queries[:, head * repeat : (head + 1) * repeat]
            place = block.layer, head
            found = recalled(self._choice, queries, block.keys[:, head])
            self._sums[place] = self._sums.get(place, 0.0) + found
            self._counts[place] = self._counts.get(place, 0) + 1

    def result(self, about: Mapping[str, Any]) -> bytes:
        """See `Calibration`."""
        return msgspec.json.encode(self._recalls(about)) + b"\n"

    def described(self) -> list[str]:
        """See `Calibration`."""
        recalls, lines = self._recalls({}), []
        for budget in (0.25, 0.5):
            rules = assigned(recalls, budget)
            counts = [sum(rule == i for rule, _ in rules.values()) for i in range(len(RULES))]
            heads = ", ".join(f"{count} {name}" for count, name in zip(counts, RULES, strict=True))
            alike = dict.fromkeys(rules, (LINES, budget - 1 / (2 * recalls.stride)))
            lines.append(
                f"at {budget:.0%} of full attention: {foretold(recalls, rules):.1%} of it is "
                f"recalled, {foretold(recalls, alike):.1%} with all heads alike; heads by rule: "
                f"{heads}"
            )
        return lines

    def _recalls(self, about: Mapping[str, Any]) -> HeadRecalls:
        heads = [
            HeadRecall(
                layer,
                head,
                {
                    name: tuple(np.round(of_rule, 4).tolist())
                    for name, of_rule in zip(
                        RULES, self._sums[layer, head] / self._counts[layer, head], strict=True
                    )
                },
            )
            for layer, head in sorted(self._sums)
        ]
        return HeadRecalls(
            self._name, VERSION, self._choice.stride, SHARES, tuple(heads), dict(about)
        )


def recalled(choice: Choice, queries: Any, keys: Any) -> Doubles:
    """The share of the attention of one key-value head's queries (64, heads, head_dim), scaled, on
    what each of the rules would visit of keys (n, head_dim), at each of `SHARES`: (rules,
    shares)."""
    scores = np.einsum("ihd,jd->hij", queries, keys, optimize=True)
    seen = len(keys) - BLOCK_KEYS + np.arange(BLOCK_KEYS) + 1
    scores[:, np.arange(len(keys)) >= seen[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mass = weights.mean(axis=(0, 1), dtype=np.float64).reshape(-1, BLOCK_KEYS).sum(axis=1)
    blocks = len(mass)
    forced = choice.sinks + choice.local
    counts = np.clip(np.ceil(np.array(SHARES) * blocks).astype(int), min(forced, blocks), blocks)
    found = []
    for rule in range(len(RULES)):
        # Any share in between has the weights of the rule.
        by_rule = HeadRule(choice, rule, (blocks - 1.5) / blocks).weights(queries, keys)
        order = np.argsort(-by_rule, kind="stable")
        first = np.r_[
            np.arange(min(choice.sinks, blocks)), np.arange(blocks - choice.local, blocks)
        ]
        order = np.r_[first, order[~np.isin(order, first)]]
        found.append(np.cumsum(mass[order])[counts - 1])
    return np.array(found)


def _check(numbers: MInferenceOptions | MInferenceAsk) -> None:
    if numbers.share is not None and not 0.0 < numbers.share <= 1.0:
        raise ValueError(f"share must lie above 0 and up to 1, got {numbers.share}.")
    if numbers.stride is not None and numbers.stride not in STRIDES:
        raise ValueError(f"stride must be 8 or 16, got {numbers.stride}.")
    at_least(0, sink_blocks=numbers.sink_blocks, dense_layers=numbers.dense_layers)
    at_least(1, last_tokens=numbers.last_tokens)
