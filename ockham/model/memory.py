"""The memory plan: weights, state and workspace against what is allowed, before anything is read.

The state's pool is shared out among the groups of layers so that none runs out before another. A
sequence of n tokens holds n cells in a group that sees everything, and at most w = window + one
step's tokens + two pages in a sliding one. If S sequences hold T cells together, the sliding group
needs sum(min(n_i, w)) <= min(T, S * w) cells, so that pool is as large as any S sequences can use
while the full group holds them. The same holds of a group of layers that stand apart because the
engine's Keep leaves them at most w cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from ockham.core.asks import Ask
from ockham.core.choices import Choice
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, DoesNotFit, InvalidRequest
from ockham.core.registry import find, make, name_of
from ockham.core.seams import AttentionGroup, Keep, Keeping, KeptText, Pattern, SequencePattern
from ockham.core.units import readable
from ockham.kernels.base import GroupLayout
from ockham.kernels.choosers import held_bytes, summaries_bytes
from ockham.kernels.ops import Program, StepSizes, workspace_bytes
from ockham.model.adapting import adapters_bytes
from ockham.model.program.description import LayerGroup, ModelDescription

LOGITS_BYTES = 64 << 20
"""The engine wants logits of at most this size in a step, or of one row per running sequence."""

STORE_BYTES = 128 << 20
"""Pages on their way to a store on disk and from it."""

SCORES_BYTES = 64 << 20
"""Most bytes of attention scores that the backend holds in a step."""

READ_BYTES = 16 << 20
"""Most bytes of the buffers that weights are read and widened in."""


class MemoryPlan(msgspec.Struct, kw_only=True, frozen=True):
    """What an engine will take, in bytes, and what it may hold.

    `pages[g]` are the pages of `page_tokens` tokens of layer group g; `step_rows` the most rows of
    a step, `logits_rows` the most of them whose logits it may want.
    """

    weights_bytes: int
    state_bytes: int
    workspace_bytes: int
    allowed_bytes: int
    max_model_len: int
    max_num_seqs: int
    logits_rows: int
    step_rows: int
    page_tokens: int
    pages: tuple[int, ...]
    state_dtype: str
    choices: tuple[Choice | None, ...] = ()
    """How rows choose keys in each layer group by the engine's pattern: `state_bytes` has the
    summaries in it that they choose by. None at all where nothing chooses."""
    checkpoint_tokens: int = 0
    """Of how many tokens of a prompt one is a place from which others may go on, where layers keep
    no keys and values; 0 where all do."""
    checkpoint_bytes: int = 0
    """What those layers keep there."""
    checkpoints: int = 0
    """For how many of them there is room beside what running sequences keep."""
    token_bytes: int = 0
    """What layers that attend keep of each token; 0 where none does."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.state_bytes + self.workspace_bytes

    def layouts(self, description: ModelDescription) -> tuple[GroupLayout, ...]:
        """The pools that a backend is to allocate, one per layer group."""
        return tuple(
            _layout(group, self.state_dtype, self.page_tokens, pages)
            for group, pages in zip(description.groups, self.pages, strict=True)
        )

    def numbers(self) -> dict[str, int]:
        """The plan as flat integers, for JSON and metrics."""
        values = msgspec.to_builtins(self)
        pages = {f"group_{g}_pages": count for g, count in enumerate(self.pages)}
        return {k: v for k, v in values.items() if isinstance(v, int)} | pages

    def describe(self) -> str:
        """One line for people."""
        return (
            f"memory: weights {readable(self.weights_bytes)}, workspace "
            f"{readable(self.workspace_bytes)}, and as it fills, {self._state()}: at most "
            f"{readable(self.total_bytes)} of the {readable(self.allowed_bytes)} allowed; "
            f"max_model_len {self.max_model_len}, max_num_seqs {self.max_num_seqs}"
            + self._checkpoints()
        )

    def _state(self) -> str:
        if not self.token_bytes:
            return f"recurrent state of up to {readable(self.state_bytes)}, and no keys and values"
        tokens = self.page_tokens * max(self.pages)
        return (
            f"a KV cache of up to {readable(self.state_bytes)} ({tokens} tokens, "
            f"{self.state_dtype})"
        )

    def _checkpoints(self) -> str:
        if not self.checkpoint_tokens:
            return ""
        held = readable(self.checkpoint_bytes // self.checkpoint_tokens)
        room = f"{self.checkpoints} checkpoint{'' if self.checkpoints == 1 else 's'}"
        return (
            f"; room for {room} of {readable(self.checkpoint_bytes)}, one every "
            f"{self.checkpoint_tokens} tokens of a prompt ({held} a token)"
        )


def plan_memory(
    config: EngineConfig,
    description: ModelDescription,
    program: Program,
    weights_bytes: int,
    state_dtype: str,
    available_bytes: int,
) -> MemoryPlan:
    """Fit weights, workspace and as much state as can be used into the available memory. `program`
    is the model, compiled with or without the values of its weights.

    Raises DoesNotFit with what would fit, and ConfigError if `max_model_len` is beyond the
    checkpoint's limit.
    """
    limit = description.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the checkpoint is made for at most "
            f"{limit} tokens; leave it out or lower it."
        )
    allowed = granted_bytes(config, available_bytes)
    if config.kv_store is not None:
        allowed -= STORE_BYTES
    adapters = adapters_bytes(config.adapter, program)
    if 0 < allowed <= adapters:
        raise DoesNotFit(
            f"the adapters that {config.adapter!r} allows in memory take {readable(adapters)} of "
            f"{readable(allowed)}; allow fewer, or lower ranks."
        )
    allowed -= adapters
    if allowed <= 0:
        raise DoesNotFit(
            f"swap_space takes {readable(config.swap_bytes)}, which leaves nothing of the "
            f"{readable(available_bytes)} that there are; lower it."
        )
    sizes = _Sizes(
        config,
        description,
        program,
        weights_bytes,
        state_dtype,
        allowed,
        _most_cells(config, description),
        _choices(config, description),
    )
    return sizes.plan(config.max_model_len or sizes.longest_that_fits(limit))


def granted_bytes(config: EngineConfig, available_bytes: int) -> int:
    """What an engine may take of the available memory, without its swap space."""
    share = int(available_bytes * config.gpu_memory_utilization)
    if config.memory_bytes is not None:
        share = min(config.memory_bytes, available_bytes)
    return share - config.swap_bytes


def outside_bytes(config: EngineConfig, program: Program) -> int:
    """What an engine takes beside the sum of its plan: swap space, adapters, pages on their way."""
    store = 0 if config.kv_store is None else STORE_BYTES
    return config.swap_bytes + store + adapters_bytes(config.adapter, program)


def least_bytes(
    config: EngineConfig,
    description: ModelDescription,
    program: Program,
    weights_bytes: int,
    state_dtype: str,
    tokens: int,
) -> int:
    """The memory with which an engine can serve one sequence of so many tokens, all told."""
    sizes = _Sizes(
        config,
        description,
        program,
        weights_bytes,
        state_dtype,
        0,
        _most_cells(config, description),
        _choices(config, description),
    )
    state = sizes.state_bytes(sizes.sequence_pages(tokens), tokens)
    pool = max(state, config.kv_cache_memory_bytes or 0)
    return weights_bytes + sizes.workspace_bytes(tokens) + pool + outside_bytes(config, program)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The figures that a plan is computed from."""

    config: EngineConfig
    description: ModelDescription
    program: Program
    weights_bytes: int
    state_dtype: str
    allowed_bytes: int
    most_cells: Callable[[int], list[int]]
    """Cells that a sequence of so many tokens holds at once in each group, where no window says
    so."""
    choices: tuple[Choice | None, ...]
    """How rows choose keys in each group by the engine's pattern."""

    def plan(self, max_model_len: int) -> MemoryPlan:
        config, pool = self.config, self.pool_bytes(max_model_len)
        least = self.sequence_pages(max_model_len)
        used = self.weights_bytes + self.workspace_bytes(max_model_len)
        if pool < self.state_bytes(least, max_model_len) or used + pool > self.allowed_bytes:
            raise DoesNotFit(self._refusal(max_model_len))
        most = config.max_num_seqs * self.context_pages(max_model_len)
        if not self.description.causal:
            # Nothing is kept from one step to the next.
            rows = self.context_pages(self.step_rows(max_model_len))
            most = min(most, max(least, rows + config.max_num_seqs))
        context = _largest(least, most, lambda t: self.state_bytes(t, max_model_len) <= pool)
        return MemoryPlan(
            weights_bytes=self.weights_bytes,
            state_bytes=self.state_bytes(context, max_model_len),
            workspace_bytes=self.workspace_bytes(max_model_len),
            allowed_bytes=self.allowed_bytes,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            logits_rows=self.logits_rows,
            step_rows=self.step_rows(max_model_len),
            page_tokens=config.block_size,
            pages=tuple(
                self.group_pages(group, context, max_model_len)
                for group in range(len(self.description.groups))
            ),
            state_dtype=self.state_dtype,
            choices=self.choices if any(self.choices) else (),
            checkpoint_tokens=self.checkpoint_tokens,
            checkpoint_bytes=self.checkpoint_bytes,
            checkpoints=self.checkpoints(context),
            token_bytes=self.token_bytes,
        )

    def longest_that_fits(self, limit: int) -> int:
        """The checkpoint's limit, or the longest single sequence that the memory can hold."""
        if not self.fits(1):
            raise DoesNotFit(self._refusal(min(limit, self.config.block_size)))
        return _largest(1, limit, self.fits)

    def fits(self, max_model_len: int) -> bool:
        """Whether one sequence of this length fits."""
        pool = self.pool_bytes(max_model_len)
        used = self.weights_bytes + self.workspace_bytes(max_model_len)
        need = self.state_bytes(self.sequence_pages(max_model_len), max_model_len)
        return need <= pool and used + pool <= self.allowed_bytes

    def pool_bytes(self, max_model_len: int) -> int:
        """What the state may take: as configured, or what is left."""
        if self.config.kv_cache_memory_bytes is not None:
            return self.config.kv_cache_memory_bytes
        used = self.weights_bytes + self.workspace_bytes(max_model_len)
        return max(0, self.allowed_bytes - used)

    def context_pages(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def group_pages(self, group: int, context_pages: int, max_model_len: int) -> int:
        """Pages that a group needs while all sequences' tokens fill `context_pages` pages."""
        window = self.description.groups[group].window
        if window is None:
            most = self.most_cells(max_model_len)
            cells = most[group]
            if cells == max(most):
                return context_pages
        elif self.description.groups[group].row_width:
            # What the rows of a step look back at and what they leave, and what the prefixes that
            # are held end with.
            sequence = 2 * (1 + self.context_pages(window))
            ends = self.checkpoints(context_pages)
            return min(context_pages, self.config.max_num_seqs * sequence + ends)
        else:
            cells = self.window_cells(window, max_model_len)
        return min(context_pages, self.config.max_num_seqs * self.context_pages(cells))

    @property
    def checkpoint_bytes(self) -> int:
        """What layers without keys and values keep at a place from which others may go on; 0 if
        there are none."""
        return sum(each.page_bytes for each in self._page_layouts if not each.spec.attends)

    @property
    def checkpoint_tokens(self) -> int:
        """Of how many tokens of a prompt one is such a place, no fewer than a page; 0 as above. By
        default as many as keep as much as one, or where none is kept as many as a step computes."""
        if not self.checkpoint_bytes:
            return 0
        usual = self.config.max_num_batched_tokens
        if self.token_bytes:
            usual = -(-self.checkpoint_bytes // self.token_bytes)
        return max(self.config.block_size, self.config.checkpoint_tokens or usual)

    def checkpoints(self, context_pages: int) -> int:
        """How many such places the tokens of so many pages have; 0 as above."""
        if not self.checkpoint_bytes:
            return 0
        return -(-context_pages * self.config.block_size // self.checkpoint_tokens)

    @property
    def token_bytes(self) -> int:
        """What layers that attend keep of each token."""
        return sum(each.cell_bytes for each in self._page_layouts if each.spec.attends)

    @property
    def _page_layouts(self) -> list[GroupLayout]:
        return [
            _layout(group, self.state_dtype, self.config.block_size, 1)
            for group in self.description.groups
        ]

    def step_rows(self, max_model_len: int) -> int:
        """The most rows of a step, which holds whole texts if the model is not causal."""
        rows = self.config.max_num_batched_tokens
        return rows if self.description.causal else max(rows, max_model_len)

    def window_cells(self, window: int, max_model_len: int) -> int:
        """Cells that a sequence may hold at once in a group with a window."""
        chunk = self.step_rows(max_model_len) + 2 * self.config.block_size
        return min(max_model_len, window + chunk)

    def sequence_pages(self, max_model_len: int) -> int:
        """Pages of each group that the longest sequence needs, of whose cells not all may stay."""
        windows = [group.window for group in self.description.groups if group.window is not None]
        held = [self.window_cells(window, max_model_len) for window in windows]
        return self.context_pages(max([*self.most_cells(max_model_len), *held]))

    def state_bytes(self, context_pages: int, max_model_len: int) -> int:
        """Keys and values, and the summaries by which rows choose among them."""
        total = 0
        groups = self.description.groups
        for number, (group, choice) in enumerate(zip(groups, self.choices, strict=True)):
            page = _layout(group, self.state_dtype, self.config.block_size, 1)
            page_bytes = page.page_bytes + summaries_bytes([page], [choice])
            page_bytes += held_bytes([page], [choice], max_model_len)
            total += page_bytes * self.group_pages(number, context_pages, max_model_len)
        return total

    @property
    def logits_rows(self) -> int:
        """The most rows whose logits the engine asks for in one step."""
        return max(self.config.max_num_seqs, LOGITS_BYTES // (4 * self.description.vocab_size), 1)

    def workspace_bytes(self, max_model_len: int) -> int:
        """What the operations work in for the largest step, and fixed buffers."""
        rows = self.step_rows(max_model_len)
        head_rows = min(self.logits_rows, max(rows, self.config.max_num_seqs))
        sizes = StepSizes(rows, head_rows, max_model_len)
        return workspace_bytes(self.program, sizes) + SCORES_BYTES + READ_BYTES

    def _refusal(self, max_model_len: int) -> str:
        need = self.weights_bytes + self.workspace_bytes(max_model_len)
        state = self.state_bytes(self.sequence_pages(max_model_len), max_model_len)
        given = self.config.kv_cache_memory_bytes
        head = (
            f"the model does not fit: weights {readable(self.weights_bytes)}, workspace "
            f"{readable(need - self.weights_bytes)} and the state of one sequence of "
            f"{max_model_len} tokens {readable(state)}, where {readable(self.allowed_bytes)} are "
            "allowed"
        )
        if given is not None:
            head += f" and kv_cache_memory_bytes grants the state {readable(given)}"
        if self.fits(1):
            longest = _largest(1, max_model_len, self.fits)
            return f"{head}. max_model_len={longest} would fit."
        missing = need + max(state, given or 0) - self.allowed_bytes
        if missing > 0:
            head += f"; {readable(missing)} are missing"
        return f"{head}. {self._advice(need + max(state, given or 0))}"

    def _advice(self, need: int) -> str:
        fewer = msgspec.structs.replace(self.config, max_num_seqs=1, max_num_batched_tokens=64)
        small = replace(self, config=fewer)
        share = self.config.gpu_memory_utilization
        given = self.config.kv_cache_memory_bytes
        if given is not None:
            least = self.state_bytes(1, self.config.block_size)
            if given < least:
                return (
                    f"Raise kv_cache_memory_bytes: a page of {self.config.block_size} tokens takes "
                    f"{readable(least)}."
                )
            if need > self.allowed_bytes:
                return "Lower kv_cache_memory_bytes."
        wanted = share * need / max(self.allowed_bytes, 1)
        if wanted <= 1:
            return (
                f"gpu_memory_utilization={share:g} allows too little; "
                f"{math.ceil(1000 * wanted) / 1000:g} would do."
            )
        if small.fits(1):
            return "max_num_seqs=1 with max_num_batched_tokens=64 would fit."
        return "Take a smaller model, a smaller dtype, or a machine with more memory."


def with_groups_apart(config: EngineConfig, description: ModelDescription) -> ModelDescription:
    """The model with those layers in a group of their own of which the engine's Keep says so.
    Raises ConfigError if that does not fit the model."""
    keeping = _keepings(config, description)(1)
    if keeping is None:
        return description
    groups = range(len(description.groups))
    apart = frozenset(layer for group in groups for layer in keeping.apart(group))
    return replace(description, apart=apart) if apart else description


def _keepings(
    config: EngineConfig, description: ModelDescription
) -> Callable[[int], Keeping | None]:
    """What the engine's Keep says of a sequence of so many tokens, most of them its prompt. Raises
    ConfigError if it does not fit the model."""
    technique = find("keep", name_of(config.keep))
    keep: Keep = make("keep", config.keep)
    ask = (technique.ask or Ask)()
    groups = tuple(_attention_groups(description))

    def keeping(tokens: int) -> Keeping | None:
        return keep.open(ask, KeptText(tokens, groups, description.hidden_size))

    try:
        keeping(1)
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    return keeping


def _most_cells(config: EngineConfig, description: ModelDescription) -> Callable[[int], list[int]]:
    """How many cells a sequence of so many tokens holds at once in each group by the engine's Keep,
    0 where a window decides. Raises ConfigError if that does not fit the model."""
    opened = _keepings(config, description)
    windows = [group.window for group in description.groups]

    def most_cells(tokens: int) -> list[int]:
        keeping = opened(tokens)
        return [
            0
            if window is not None
            else tokens
            if keeping is None
            else keeping.most_cells_of(group, tokens)
            for group, window in enumerate(windows)
        ]

    return most_cells


def _choices(config: EngineConfig, description: ModelDescription) -> tuple[Choice | None, ...]:
    """How rows choose keys in each group of layers by the engine's pattern. Raises ConfigError if
    that does not fit the model."""
    technique = find("pattern", name_of(config.attention_pattern))
    pattern: Pattern = make("pattern", config.attention_pattern)
    try:
        opened: SequencePattern | None = pattern.open(
            (technique.ask or Ask)(), _attention_groups(description)
        )
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    groups = range(len(description.groups))
    return tuple([None if opened is None else opened.choice(group) for group in groups])


def _attention_groups(description: ModelDescription) -> list[AttentionGroup]:
    return [AttentionGroup(g.layers, g.kv_heads, g.window) for g in description.groups]


def _layout(group: LayerGroup, dtype: str, page_tokens: int, pages: int) -> GroupLayout:
    return GroupLayout(group.layers, group.spec(dtype, page_tokens), pages, page_tokens)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number in [low, high] for which `fits` holds; it holds for `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
