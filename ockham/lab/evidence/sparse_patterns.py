"""Evidence for patterns that leave keys out of every head alike, asked of each request."""

from __future__ import annotations

from ockham.core.visits import BLOCK_KEYS
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.patterns import asked
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row

S2_ATTENTION = (
    "S2-Attention (paper 178, arXiv:2407.17678), of models that were trained with it: attention up "
    "to 25.3 times as fast as FlashAttention-2, and every needle found in 32,000 tokens"
)
NEIGHBOURHOOD = (
    "Fused Neighborhood Attention (paper 337, arXiv:2403.04690): in one dimension 1607% faster "
    "than naive kernels in half precision, 496% than unfused ones; of models that were "
    "trained with it"
)
TRIANGLE = (
    "TriangleMix (arXiv:2507.21526): 12% to 32% less time to the first token at 32,000 to 128,000 "
    "tokens, with no loss of accuracy"
)


@evidence("pattern", "strided")
def strided(bench: Bench) -> Row:
    """One key's word among hundreds, while every second layer sees two blocks and a quarter of
    the others."""
    numbers: dict[str, object] = {"local_blocks": 2, "stride": 4, "dense_every": 2}
    how = f"in odd layers a head sees the latest 2 blocks of {BLOCK_KEYS}, and every 4th other"
    return asked(bench, bench.engine(), "strided", numbers, how, S2_ATTENTION)


@evidence("pattern", "dilated")
def dilated(bench: Bench) -> Row:
    """One key's word among hundreds, while every head sees four blocks of the list."""
    numbers: dict[str, object] = {"window_blocks": 4, "dilation": 3}
    how = f"each head sees 4 blocks of {BLOCK_KEYS}, in odd layers with 2 between each"
    return asked(bench, bench.engine(), "dilated", numbers, how, NEIGHBOURHOOD)


@evidence("pattern", "triangle")
def triangle(bench: Bench) -> Row:
    """One key's word among hundreds, of which deep layers read three blocks for all but the last
    tokens."""
    numbers: dict[str, object] = {"sink_blocks": 1, "window_blocks": 2, "last_tokens": 64}
    how = (
        f"the deep half of the layers reads 1 block of {BLOCK_KEYS} and the latest 2, but for the "
        "prompt's end"
    )
    return asked(bench, bench.engine(), "triangle", numbers, how, TRIANGLE)
