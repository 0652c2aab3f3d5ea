"""How fast a machine is, and from that the seconds of a step: a roofline with what it leaves out.

A kernel takes the longer of two times, as in the roofline of LLM-Viewer (Yuan et al. 2024,
arXiv:2402.16363): that of moving its bytes and that of its arithmetic. Beside it stand what a pure
roofline misses: a loop that is handed to the threads costs time however small it is; a kernel
reaches a share of the limits that depends on its format and on how many rows share a weight that it
unpacks; norms, activations and rotations touch every value of a row; and scheduling and
bookkeeping take time for a step and for each sequence in it. Each of these is a rate with a
physical meaning, measured by a probe of its own (`ockham/lab/calibrate.py`), never fitted to the
steps that are to be predicted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ockham.core.cost import ModelCost, Part, ProductCost, cells_seen, keys_seen
from ockham.core.visits import BLOCK_KEYS

LOOPS_OF_A_LAYER = 9
"""Loops that a layer hands to the threads: norm, queries to values, rotation, attention, its
rounding, its output, norm, and two of the feed-forward."""


@dataclass(frozen=True, slots=True)
class ProductRate:
    """How fast products of one format are computed.

    `weight_s[i]` are the seconds that a weight in a cache takes for `rows[i]` rows together: at few
    rows mostly to load and unpack it, at many to multiply. `stream` is the share of the rate of
    reading memory that a product of one row reaches with weights that no cache holds. `value_s` are
    the seconds to normalise and round one value of a row for the product.
    """

    rows: tuple[int, ...]
    weight_s: tuple[float, ...]
    stream: float
    exposed: float
    value_s: float

    def weight_seconds(self, rows: float) -> float:
        """Seconds of a weight, linear between the numbers of rows that were probed, and beyond the
        last in proportion to them."""
        if rows >= self.rows[-1]:
            return self.weight_s[-1] * rows / self.rows[-1]
        right = max(1, bisect_right(self.rows, rows))
        left = right - 1
        share = (rows - self.rows[left]) / (self.rows[right] - self.rows[left])
        return self.weight_s[left] + share * (self.weight_s[right] - self.weight_s[left])


@dataclass(frozen=True, slots=True)
class AttentionRate:
    """How fast attention is, for one size and number of heads.

    `cell_s` are the seconds to load a key and a value of one cell and layer, for all heads; `key_s`
    those of one row that sees one key, with all its heads in one layer, once they are loaded.
    `stream` is the share of the rate of reading memory that long contexts reach.
    """

    cell_s: float
    key_s: float
    stream: float
    run_s: float = 0.0
    """Of the rows of one sequence in one layer, however few keys they see."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured of a machine, for the kernels of one model."""

    flops_per_s: float
    """Of the arithmetic that most weights are multiplied with, when the rates were probed."""
    read_bytes_per_s: float
    products: Mapping[str, ProductRate]
    attention: AttentionRate
    loop_s: float
    """To hand a loop of next to no work to the threads and wait for its end."""
    gate_value_s: float
    """Of a value of an activation product."""
    rotation_value_s: float
    """Of a value of queries, keys or values that is rotated or written."""
    logit_s: float
    """Of a logit that is looked at to choose a token."""
    step_s: float
    """Of scheduling and bookkeeping, for a step."""
    sequence_s: float
    """Of the same, for each sequence in it."""
    cold: float = 1.0
    """How many times as long bookkeeping takes in steps that read the model's weights as in steps
    that read nothing: what is read takes the caches."""
    drawn_s: float = 0.0
    """Of a logit that is looked at to draw a token by a temperature."""
    resident_bytes_per_s: float = math.inf
    """Of reading again and again as many bytes as the model's weights take, where these fit into
    half of the last cache: what other programs leave of it."""
    cache_bytes: int = 0
    """Of the last cache: weights that fit into half of it are not read from memory again."""

    def at(self, read_bytes_per_s: float, flops_per_s: float) -> Rates:
        """The same machine when memory and cores have other speeds: they drift within minutes."""
        speed = flops_per_s / self.flops_per_s
        return replace(
            self,
            flops_per_s=flops_per_s,
            read_bytes_per_s=read_bytes_per_s,
            resident_bytes_per_s=self.resident_bytes_per_s * speed,
            products={
                name: replace(
                    rate,
                    weight_s=tuple(s / speed for s in rate.weight_s),
                    value_s=rate.value_s / speed,
                )
                for name, rate in self.products.items()
            },
            attention=replace(
                self.attention,
                cell_s=self.attention.cell_s / speed,
                key_s=self.attention.key_s / speed,
                run_s=self.attention.run_s / speed,
            ),
            loop_s=self.loop_s / speed,
            gate_value_s=self.gate_value_s / speed,
            rotation_value_s=self.rotation_value_s / speed,
            logit_s=self.logit_s / speed,
            drawn_s=self.drawn_s / speed,
            step_s=self.step_s / speed,
            sequence_s=self.sequence_s / speed,
        )


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """The predicted seconds of a step, by what takes them."""

    products: float
    attention: float
    values: float
    """Norms, roundings, activations, rotations."""
    loops: float
    logits: float
    bookkeeping: float

    @property
    def total(self) -> float:
        return (
            self.products
            + self.attention
            + self.values
            + self.loops
            + self.logits
            + self.bookkeeping
        )


def predict(
    cost: ModelCost, rates: Rates, parts: Sequence[Part], logits: int, vocabulary: int
) -> StepSeconds:
    """The seconds of a step of these runs of rows, `logits` of whose rows want logits.

    Raises KeyError if the rates lack a format of the model.
    """
    rows = sum(count for _, count in parts)
    cached = fits_cache(cost, rates, rows, logits)
    return StepSeconds(
        products=products_seconds(cost, rates, rows, logits, cached),
        attention=_attention_seconds(cost, rates, parts),
        values=values_seconds(cost, rates, rows, logits),
        loops=loops_seconds(cost, rates),
        logits=logits * vocabulary * rates.logit_s,
        bookkeeping=rates.step_s + len(parts) * rates.sequence_s,
    )


def fits_cache(cost: ModelCost, rates: Rates, rows: int, logits: int) -> bool:
    """Whether the weights of a step are not read from memory again."""
    return cost.weight_bytes(rows, logits) <= rates.cache_bytes / 2


def products_seconds(cost: ModelCost, rates: Rates, rows: int, logits: int, cached: bool) -> float:
    """All products of a step of so many rows, `logits` of which want logits. `cached` is as in
    `fits_cache`, of the whole step. Raises KeyError if the rates lack a format."""
    return sum(
        _product_seconds(each, rates, logits if each.head else rows, cached)
        for each in cost.products
    )


def values_seconds(cost: ModelCost, rates: Rates, rows: int, logits: int) -> float:
    """Norms, roundings, activations and rotations of so many rows."""
    rotated = sum(g.layers * (g.heads + 2 * g.kv_heads) * g.head_dim for g in cost.groups)
    return rows * (cost.gate_values * rates.gate_value_s + rotated * rates.rotation_value_s) + sum(
        (logits if each.head else rows)
        * (each.experts_per_row or 1)
        * each.count
        * each.inputs
        * rates.products[each.format].value_s
        for each in cost.products
    )


def loops_seconds(cost: ModelCost, rates: Rates) -> float:
    """Handing loops to the threads, in a step of whatever rows."""
    layers = sum(group.layers for group in cost.groups)
    return (layers * LOOPS_OF_A_LAYER + 3) * rates.loop_s


def product_seconds(product: ProductCost, rates: Rates, cached: bool = False) -> float:
    """What products of one kind add to a step of one row. `cached` says that their weights are not
    read from memory again. Raises KeyError if the rates lack their format."""
    values = (product.experts_per_row or 1) * product.count * product.inputs
    rounding_s = values * rates.products[product.format].value_s
    return _product_seconds(product, rates, 1, cached) + rounding_s


def _product_seconds(product: ProductCost, rates: Rates, rows: int, cached: bool) -> float:
    """All products of one kind: each the longer of reading its matrix and of its arithmetic."""
    if not rows:
        return 0.0
    matrices, rows_of_each = 1, float(rows)
    if product.experts:
        matrices = min(product.experts, rows * product.experts_per_row)
        rows_of_each = rows * product.experts_per_row / matrices
    rate = rates.products[product.format]
    compute_s = product.weights * rate.weight_seconds(rows_of_each)
    if cached:  # the probe of the arithmetic read its matrix from the cache too
        resident_s = product.nbytes / rates.resident_bytes_per_s
        return product.count * matrices * max(compute_s, resident_s)
    read_s = product.nbytes / (rates.read_bytes_per_s * rate.stream)
    longer, shorter = max(compute_s, read_s), min(compute_s, read_s)
    if longer <= 0.0:  # probed while other programs took the cores
        return 0.0
    # The less the two are in balance, the more of the shorter is hidden.
    exposed_s = rate.exposed * shorter * (shorter / longer)
    return product.count * matrices * (longer + exposed_s)


def state_fits_cache(cost: ModelCost, rates: Rates, nbytes: float) -> bool:
    """Whether so many bytes of state stay in the cache between steps, beside the weights."""
    return cost.weight_bytes(1, 1) + nbytes <= rates.cache_bytes / 2


def _attention_seconds(cost: ModelCost, rates: Rates, parts: Sequence[Part]) -> float:
    rate = rates.attention
    held = sum(
        group.cell_bytes * cells_seen(first, rows, group.window)
        for group in cost.groups
        for first, rows in parts
    )
    cached = state_fits_cache(cost, rates, held)
    seconds = 0.0
    for group in cost.groups:
        for first, rows in parts:
            cells = cells_seen(first, rows, group.window)
            looked_at = keys_seen(first, rows, group.window)
            if rows > 1 and group.window is None:
                looked_at += keys_to_block_ends(first, rows)
            compute_s = group.layers * (cells * rate.cell_s + looked_at * rate.key_s + rate.run_s)
            read_s = cells * group.cell_bytes / (rates.read_bytes_per_s * rate.stream)
            seconds += compute_s if cached else max(compute_s, read_s)
    return seconds


def keys_to_block_ends(first: int, rows: int) -> int:
    """How many more keys are looked at where the rows of a prompt share them in blocks: the blocks
    on the diagonal are computed whole, and masked. `first` is what the first row sees."""
    whole, rest = divmod(rows, BLOCK_KEYS)
    each = BLOCK_KEYS * (BLOCK_KEYS - 1) // 2
    return whole * each + sum(-(first + row) % BLOCK_KEYS for row in range(rest))
