"""Rows of texts, as the heads of a model see them: what a `Calibration` is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import NOTHING, Calibration, Observer, OwnRows, QueryBlock, Seen, Wants
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.engine.messages import Request

BLOCKS = 6
"""Of each text, evenly spread behind its first quarter."""
LEAST_BLOCKS = 8
"""Shorter texts leave a head nothing to choose."""
CHUNK = 4 * BLOCK_KEYS
"""Rows of a step."""


class HeadSamples:
    """A model that reads texts with full attention, and shows some of their rows."""

    def __init__(self, model: str, longest: int, threads: int | None = None) -> None:
        """`longest` is the number of tokens of the longest text. Raises ModelError for a model
        without a layer of attention that sees all that comes before."""
        self._engine = Engine(
            EngineConfig(
                model=model,
                skip_tokenizer_init=True,
                max_model_len=longest + 2,
                max_num_seqs=1,
                max_num_batched_tokens=CHUNK,
                reuse="none",
                speculative_config="none",
                threads=threads,
            )
        )
        groups = self._engine.state.groups
        self._layers = [layer for group in groups if group.window is None for layer in group.layers]
        if not self._layers:
            self.close()
            raise ModelError(f"{model} has no layer of attention that sees a whole text.")

    def close(self) -> None:
        self._engine.close()

    def show(
        self,
        texts: Sequence[Sequence[int]],
        calibration: Calibration,
        tell: Callable[[str], None] = lambda line: None,
    ) -> int:
        """Let a calibration see `BLOCKS` query blocks of each text (token ids), in every layer that
        has no window; how many tokens were read. Raises ConfigError for a text that is too
        short."""
        for number, text in enumerate(texts):
            if len(text) < LEAST_BLOCKS * BLOCK_KEYS:
                raise ConfigError(
                    f"a text of {len(text)} tokens shows nothing of what heads choose; give texts "
                    f"of at least {LEAST_BLOCKS * BLOCK_KEYS}."
                )
            self._show(list(text), calibration)
            tell(f"read {number + 1} of {len(texts)} texts")
        return sum(map(len, texts))

    def _show(self, text: list[int], calibration: Calibration) -> None:
        last = len(text) // BLOCK_KEYS - 1
        blocks = np.unique(np.linspace(last // 4, last, BLOCKS).astype(np.int32))
        queries = _Queries(self._layers, blocks)
        request = Request(
            request_id="text",
            prompt_token_ids=text,
            params=SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True),
            detokenize=False,
        )
        engine = self._engine
        engine.take(request)
        sequence = engine.groups[request.request_id].first
        sequence.observe(queries)
        while sequence.view is None or sequence.view.tokens < len(text):
            engine.step()
        attends = engine.techniques.layers
        for group, layout in enumerate(engine.state.groups):
            if layout.window is not None:
                continue
            keys, _ = engine.state.held(sequence.view, group).read(0, (last + 1) * BLOCK_KEYS)
            for layer, of_layer in zip(layout.layers, keys, strict=True):
                by_cell = of_layer.transpose(1, 0, 2)
                scale = np.float32(attends[layer].scale)
                for block in blocks.tolist():
                    own = queries.of(layer, block) * scale
                    shape = (BLOCK_KEYS, -1, by_cell.shape[-1])
                    end = (block + 1) * BLOCK_KEYS
                    calibration.saw(QueryBlock(layer, own.reshape(shape), by_cell[:end]))
        while engine.has_work:
            engine.step()


class _Queries(Observer):
    """Keeps the queries of the rows of some query blocks."""

    def __init__(self, layers: Sequence[int], blocks: Ints) -> None:
        self._layers, self._blocks = layers, blocks
        self._found: dict[int, dict[int, Floats]] = {layer: {} for layer in layers}

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        rows = np.flatnonzero(np.isin(own.places // BLOCK_KEYS, self._blocks)).astype(np.int32)
        return Wants(queries=self._layers, rows=rows) if len(rows) else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        for layer in self._layers:
            for place, row in zip(own.places[seen.rows].tolist(), seen.queries[layer], strict=True):
                self._found[layer][place] = row.copy()

    def of(self, layer: int, block: int) -> Floats:
        """Those of a block: (64, heads * head_dim)."""
        first = block * BLOCK_KEYS
        return np.stack([self._found[layer][first + row] for row in range(BLOCK_KEYS)])
