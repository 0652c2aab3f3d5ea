"""Which pattern of attention each sequence has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from ockham.core.arrays import Ints
from ockham.core.choices import Choice
from ockham.core.config import EngineConfig
from ockham.core.cost import ATTENTION, RUNS_ALL, Skips
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import AttentionGroup, OwnRows, Seen, SequencePattern, Wants
from ockham.core.units import readable
from ockham.core.visits import BLOCK_KEYS, EVERY, BlockVisits
from ockham.engine.messages import Request
from ockham.engine.reordering import Reordering
from ockham.engine.techniques import Techniques
from ockham.kernels.base import GroupLayout
from ockham.kernels.choosers import held_bytes, summaries_bytes
from ockham.model.memory import MemoryPlan

LONGEST = 1 << 30
"""Tokens of a prompt in which every pattern that chooses keys does so."""


@dataclass(frozen=True, slots=True)
class OpenPattern:
    """The pattern of one sequence, and the technique that gave it."""

    name: str
    of: SequencePattern
    exact_until: int | None = None
    """The first token whose state nobody else may go on from, because the pattern begins there;
    None if that is said of the whole sequence."""
    whole_until: int = 0
    """See `SequencePattern`."""
    choices: tuple[Choice, ...] = ()
    """By which its rows visit what others chose."""

    def goes_on_at(self, cells: int, prompt_tokens: int) -> int:
        """How many of so many leading cells a sequence may go on from that did not compute them:
        the next row must not visit what one of those chose (`Choice.chosen_at`)."""
        for choice in self.choices:
            first = prompt_tokens if choice.first is None else choice.first
            if cells > first:
                cells = choice.chosen_at(cells, first)
        return cells

    @property
    def reordering(self) -> Reordering | None:
        """What reorders cells for it; None if nothing does."""
        cells = self.of.reorders
        return None if cells is None else Reordering(self.name, cells)

    def fork(self) -> OpenPattern:
        """That of another sequence, which goes on from this one's state."""
        return replace(self, of=self.of.fork())


class Patterns:
    """Opens the patterns of sequences, on a model with these groups of attention layers.

    Raises ConfigError if the engine's setting does not fit the model.
    """

    def __init__(
        self, techniques: Techniques, groups: Sequence[AttentionGroup], summaries: Summaries
    ) -> None:
        self._techniques, self._groups = techniques, tuple(groups)
        self._summaries = summaries
        try:
            self.open(Request(request_id="", prompt_token_ids=[], params=SamplingParams()))
        except InvalidRequest as error:
            raise ConfigError(str(error)) from None

    def open(self, request: Request, skips: Skips = RUNS_ALL) -> OpenPattern | None:
        """The pattern that applies to a request; None if every block is visited. Of the layers
        whose attention the request's gate `skips` nothing is said. Raises InvalidRequest where what
        it asks does not fit the model."""
        chosen = self._techniques.of(request, "pattern")
        if chosen is None:
            return None
        pattern = chosen.technique.open(chosen.ask, self._groups)
        if pattern is None:
            return None
        self._techniques.check_passes(chosen)
        longest = pattern.for_prompt(LONGEST)  # a short prompt may leave nothing to choose
        chooses = any(longest.choice(g) is not None for g in range(len(self._groups)))
        if self._techniques.sees_whole_past and chooses:
            raise InvalidRequest(
                f"{chosen.name} chooses keys by how a query scores them, which dual chunk "
                "attention does in several ways; leave one of the two out.",
                chosen.name,
            )
        idle = [
            [i for i, layer in enumerate(group.layers) if (layer, ATTENTION) in skips]
            for group in self._groups
        ]
        pattern = pattern.for_prompt(len(request.prompt_token_ids))
        opened = _Attending(pattern, idle) if any(idle) else pattern
        until = pattern.exact_until if chosen.alters_prompts else len(request.prompt_token_ids)
        if pattern.reorders is not None:
            until = pattern.reorders.stop if until is None else min(until, pattern.reorders.stop)
        choices = [pattern.choice(group) for group in range(len(self._groups))]
        passed_on = tuple([each for each in choices if each is not None and each.every > 1])
        return OpenPattern(chosen.name, opened, until, pattern.whole_until, passed_on)

    def check(self, request: Request, opened: OpenPattern | None) -> None:
        """Raise InvalidRequest for what the memory that is left, or what else is asked, does not
        allow beside the pattern that `open` gave."""
        if opened is not None and opened.of.reorders and request.asked("reuse") is not None:
            raise InvalidRequest(
                f"{opened.name} reorders cells, and reuse puts cells of other prompts in their "
                "place; a request can have one of the two.",
                "reuse",
            )
        if (
            opened is not None
            and any(choice.first is not None for choice in opened.choices)
            and request.asked("reuse") is not None
        ):
            raise InvalidRequest(
                f"{opened.name} has tokens of the prompt go on with what an earlier one chose, "
                "which cells of other prompts do not bring along; leave out first, every or reuse.",
                "reuse",
            )
        if opened is not None and request.asked("pattern") is not None:
            self._summaries.check(opened.name, opened.of)


def with_codebooks(layouts: Sequence[GroupLayout], config: EngineConfig) -> tuple[GroupLayout, ...]:
    """The layouts of a model's state, with the codebooks by which rows choose that look scores up.
    Raises ConfigError if those of the engine's pattern are of another model."""
    pattern = make("pattern", config.attention_pattern)
    codebooks = getattr(pattern, "codebooks", None)
    if codebooks is None:
        return tuple(layouts)
    groups = [AttentionGroup(g.layers, g.spec.uniform.heads, g.window) for g in layouts]
    found = []
    for layout, books in zip(layouts, codebooks(groups), strict=True):
        width = layout.spec.uniform.width
        if books is not None and books.shape[-1] != 2 * width + 1:
            raise ConfigError(
                f"the codebooks of {config.attention_pattern} are of keys of "
                f"{books.shape[-1] // 2} elements, and the model's have {width}; fit some to this "
                "model."
            )
        found.append(replace(layout, books=books))
    return tuple(found)


class Summaries:
    """The memory of what rows choose keys by, which the backend makes when it first needs it, for a
    whole pool at once. `plan` has that of the engine's own pattern; what requests ask for besides
    must fit what the plan leaves."""

    def __init__(self, plan: MemoryPlan, layouts: Sequence[GroupLayout]) -> None:
        self._plan, self._layouts = plan, layouts
        self._planned = {
            (group, choice.chooser) for group, choice in enumerate(plan.choices) if choice
        }
        self._granted: dict[tuple[int, str], int] = {}
        self._planned_held = {
            group: held_bytes([layout], [choice], plan.max_model_len)
            for group, (layout, choice) in enumerate(zip(layouts, plan.choices, strict=False))
        }

    def check(self, name: str, pattern: SequencePattern) -> None:
        """Raise InvalidRequest if there is no memory for what the pattern `name` chooses by."""
        granted = dict(self._granted)
        for group, layout in enumerate(self._layouts):
            choice = pattern.choice(group)
            if choice is None:
                continue
            every = msgspec.structs.replace(choice, layers=(True,) * len(choice.layers))
            if (group, choice.chooser) not in self._planned:
                granted[group, choice.chooser] = summaries_bytes([layout], [every])
            held = held_bytes([layout], [every], self._plan.max_model_len)
            more = held - self._planned_held.get(group, 0)
            granted[group, _HELD] = max(more, granted.get((group, _HELD), 0))
        left = self._plan.allowed_bytes - self._plan.total_bytes
        if granted != self._granted and sum(granted.values()) > left:
            raise InvalidRequest(
                f"{name} keeps summaries beside the keys, which take "
                f"{readable(sum(granted.values()))}, and {readable(max(0, left))} are left; start "
                f"the engine with --attention-pattern {name}, or with a smaller "
                "--kv-cache-memory-bytes.",
                name,
            )
        self._granted = granted


_HELD = "held choices"
"""In place of a chooser: what is held of choices for other rows."""


class HeldBlocks(SequencePattern):
    """Every block of keys but the gaps before what a head kept: `gaps` are those of each group,
    (layers, kv_heads) in cells, or None where there are none (`GroupView.gaps`)."""

    def __init__(self, gaps: Sequence[Ints | None]) -> None:
        self._gaps = gaps

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`."""
        gaps = self._gaps[group]
        if gaps is None:
            return None
        firsts, of = np.unique(gaps // BLOCK_KEYS, return_inverse=True)
        lists = tuple(np.arange(first, block + 1, dtype=np.int32) for first in firsts.tolist())
        return BlockVisits(lists, of.reshape(gaps.shape).astype(np.int32))


class _Attending(SequencePattern):
    """A pattern, in those layers of each group that attend: in the others nothing is visited, and
    so the pattern leaves nothing out."""

    def __init__(self, pattern: SequencePattern, idle: Sequence[list[int]]) -> None:
        self._pattern, self._idle = pattern, idle
        self.fixed, self.observes = pattern.fixed, pattern.observes  # type: ignore[misc]

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`."""
        found = self._pattern.visits(group, block)
        if found is None or not self._idle[group]:
            return found
        of = found.of.copy()
        of[self._idle[group]] = EVERY
        return BlockVisits(found.lists, of)

    def choice(self, group: int) -> Choice | None:
        """See `SequencePattern`."""
        return self._pattern.choice(group)

    @property
    def reorders(self) -> range | None:
        """See `SequencePattern`."""
        return self._pattern.reorders

    def fork(self) -> SequencePattern:
        """See `SequencePattern`."""
        return _Attending(self._pattern.fork(), self._idle)

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        return self._pattern.wants(own)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        self._pattern.saw(own, seen)
