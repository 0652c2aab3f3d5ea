"""A second model in the engine, with a state of its own, for a drafter that drafts with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ockham.cache.state import State, View
from ockham.core.arrays import Doubles, Longs
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, DoesNotFit
from ockham.core.rows import Branch, build_step, chains
from ockham.core.seams import Foreseen, Rows, Target
from ockham.core.speculative import MOST_TOKENS
from ockham.core.step import Floats, Step
from ockham.core.units import readable
from ockham.kernels.base import Backend, Executor, GroupLayout, Run
from ockham.kernels.ops import Program
from ockham.kernels.sampling import Draw
from ockham.model.loading import LoadedModel, load_model, plan_model
from ockham.model.machine_memory import available_bytes

ROWS = 512
"""Most rows of a step of it."""


class SecondModel:
    """See `core.seams.SecondModel`: a program, over a state of its own. It reads
    `longest` tokens of a sequence at most; its last layer is `last_layer`."""

    def __init__(
        self,
        program: Program,
        backend: Backend,
        layouts: Sequence[GroupLayout],
        *,
        longest: int,
        last_layer: int,
        numerics_id: str,
        directory: Path,
        hidden_size: int,
    ) -> None:
        self.longest = longest
        self.most_rows = ROWS
        self.directory = directory
        self.hidden_size = hidden_size
        self.layer_parallel = 1
        self.program = program
        planes = backend.allocate(layouts)
        self.executor = backend.bind(program, planes)
        self.state = State(planes, layouts, longest, numerics_id)
        self._operations = len(program.ops)
        self._last_layer = last_layer

    def open(self) -> View:
        return self.state.new_view()

    def reserve(self, view: View, cells: int) -> bool:
        return self.state.reserve(view, cells)

    def truncate(self, view: View, cells: int) -> None:
        if view.tokens > cells:
            self.state.truncate(view, cells)

    def release(self, view: View) -> None:
        self.state.release(view)

    def bytes(self, view: View) -> int:
        pairs = zip(view.groups, self.state.groups, strict=True)
        return sum(held.pages * layout.page_bytes for held, layout in pairs)

    def move(self, view: View, source: Sequence[int], target: Sequence[int]) -> None:
        self.state.move(view, source, target)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[int | None]:
        return [drawn.token for drawn in self.executor.sample(logits, draws)]

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        return self.executor.noise(seed, stream, position, tokens)

    def _advance(self, chunks: Sequence[Rows]) -> None:
        for chunk in chunks:
            self.state.advance(chunk.view, chunk.view.tokens + len(chunk.tokens))

    def _step(self, chunks: Sequence[Rows]) -> Step:
        """Rows of trees want logits each, of the others the last."""
        views = [chunk.view for chunk in chunks]
        counts = np.array([len(chunk.tokens) for chunk in chunks], np.int32)
        rows = chains(np.array([view.tokens for view in views], np.int32), counts)
        ends = rows.first_rows + counts
        wanted: list[int] = []
        branches: list[Branch] = []
        for chunk, first, end in zip(chunks, rows.first_rows.tolist(), ends.tolist(), strict=True):
            wanted += [end - 1] if chunk.above is None else range(first, end)
            branches += _branches(chunk, first)
        return build_step(
            np.array([token for chunk in chunks for token in chunk.tokens], np.int32),
            rows.places,
            rows.owner,
            self.state.tables(views),
            self.state.page_tokens,
            branches=branches,
            wants_logits=np.array(wanted, np.int32),
        )


class SmallModel(SecondModel):
    """See `core.seams.SmallModel`. Its state has room for as many tokens as the target's, or for
    `longest` of each sequence; where no `model` is named, it is the engine's `own`.

    Raises ConfigError if its vocabulary is another than the target's, DoesNotFit if there is no
    memory for it.
    """

    def __init__(
        self,
        model: str | None,
        target: Target,
        longest: int | None = None,
        own: LoadedModel | None = None,
    ) -> None:
        most, cells = target.max_model_len, target.cells
        if longest is not None:
            most = min(longest, most)
            cells = min(cells, target.sequences * most)
        if model is None:
            assert own is not None, "the engine's own model stands for one without a name"
            loaded, layouts = own, _beside(own, cells, target.sequences)
        else:
            loaded = _load(model, target, most, cells)
            layouts = loaded.layouts
        if any(layout.spec.ends for layout in layouts):
            raise ConfigError(
                f"{loaded.description.architecture.name} has recurrent layers, which a model that "
                "works beside another cannot have: its texts are taken back to any place; name "
                "another model."
            )
        super().__init__(
            loaded.program,
            loaded.backend,
            layouts,
            longest=min(most, loaded.description.max_position_embeddings),
            last_layer=loaded.description.layers - 1,
            numerics_id=loaded.numerics_id,
            directory=loaded.directory,
            hidden_size=loaded.description.hidden_size,
        )
        self._breakpoints = loaded.program.breakpoints

    def run(self, chunks: Sequence[Rows], likely: int, hidden: bool = False) -> Foreseen:
        step = self._step(chunks)
        step.candidates = likely
        if hidden:
            step.wants_hidden = {self._last_layer: step.wants_logits}
        run = self.executor.begin(step)
        states: Floats | None = None
        if self.layer_parallel > 1 and step.groups[0].extra is not None:
            states = run_in_groups(self.executor, run, self._groups(), self._operations)
        else:
            self.executor.run(run, 0, self._operations)
        output = self.executor.finish(run)
        self._advance(chunks)
        last = output.hidden.get(self._last_layer)
        if hidden and states is not None:  # what the last layer of a group gives is not their sum
            last = states[step.wants_logits]
        return Foreseen(output.logits, output.candidates, last)

    def states(self, view: View, tokens: Sequence[int], layers: Sequence[int]) -> dict[int, Floats]:
        parts: list[dict[int, Floats]] = []
        for start in range(0, len(tokens), self.most_rows):
            ids = np.array(tokens[start : start + self.most_rows], np.int32)
            places = np.arange(view.tokens, view.tokens + len(ids), dtype=np.int32)
            if not self.state.reserve(view, view.tokens + len(ids)):
                raise ConfigError(
                    f"a second model has room for {self.longest} tokens of a text, and this one "
                    f"has more than {view.tokens}; raise kv_cache_memory_bytes."
                )
            step = build_step(
                ids,
                places,
                np.zeros(len(ids), np.int32),
                self.state.tables([view]),
                self.state.page_tokens,
                wants_logits=np.empty(0, np.int32),
            )
            rows = np.arange(len(ids), dtype=np.int32)
            step.wants_hidden = dict.fromkeys(layers, rows)
            run = self.executor.begin(step)
            self.executor.run(run, 0, self._operations)
            parts.append(self.executor.finish(run).hidden)
            self.state.advance(view, view.tokens + len(ids))
        return {layer: np.concatenate([part[layer] for part in parts]) for layer in layers}

    def _groups(self) -> list[list[tuple[int, int]]]:
        """The operations of each layer, `layer_parallel` layers together; the first is alone, for
        what it makes of the embedding is what all others build on."""
        at = self._breakpoints
        layers = [
            (at[f"layer.{layer}.before"], at[f"layer.{layer}.after"])
            for layer in range(self._last_layer + 1)
        ]
        size = self.layer_parallel
        return [layers[:1], *(layers[i : i + size] for i in range(1, len(layers), size))]


def _load(model: str, target: Target, longest: int, cells: int) -> LoadedModel:
    """A model with state for so many tokens, and drafts beside them."""
    small = EngineConfig(model=model, max_model_len=1, max_num_seqs=1)
    probed = plan_model(small)
    probed.source.close()
    found = probed.description.vocab_size
    if found != target.vocabulary:
        raise ConfigError(
            f"the draft model {model} has {found} tokens, and the model has "
            f"{target.vocabulary}: their ids cannot mean the same. Choose a draft model with "
            "the same tokenizer."
        )
    cell_bytes = sum(each.cell_bytes for each in probed.plan.layouts(probed.description))
    cells += _spare(target.sequences, small.block_size)
    return load_model(
        EngineConfig(
            model=model,
            max_model_len=min(longest, probed.description.max_position_embeddings),
            max_num_seqs=target.sequences,
            max_num_batched_tokens=ROWS,
            kv_cache_memory_bytes=cells * cell_bytes,
        )
    )


def _beside(own: LoadedModel, cells: int, sequences: int) -> tuple[GroupLayout, ...]:
    """The state of a loaded model once more, for so many tokens. Raises DoesNotFit."""
    pages = -(
        -(cells + _spare(sequences, own.layouts[0].page_tokens)) // own.layouts[0].page_tokens
    )
    layouts = tuple(replace(layout, pages=pages) for layout in own.layouts)
    needed = sum(layout.page_bytes * layout.pages for layout in layouts)
    if needed > available_bytes():
        raise DoesNotFit(
            f"drafting with the model itself needs {readable(needed)} of state, and there are "
            f"{readable(available_bytes())}; lower draft_context or max_num_seqs."
        )
    return layouts


def _spare(sequences: int, page_tokens: int) -> int:
    """Cells for drafts, and for pages that are not filled."""
    return (sequences + 1) * (page_tokens + MOST_TOKENS)


def run_in_groups(
    executor: Executor, run: Run, groups: Sequence[Sequence[tuple[int, int]]], operations: int
) -> Floats:
    """Run a program whose layers, each given by its first operation and the one after its last, all
    take the same input within a group, and add what each changes (EasySpec, paper 247). Gives the
    residual stream before the head, (rows, hidden)."""
    done = 0
    total = np.empty((0, 0), np.float32)
    for group in groups:
        executor.run(run, done, group[0][0])
        before = np.array(run.x)
        total = before.copy()
        for first, after in group:
            run.x = before.copy()
            executor.run(run, first, after)
            total += np.array(run.x) - before
        run.x = total
        done = group[-1][1]
    executor.run(run, done, operations)
    return total


def _branches(chunk: Rows, first: int) -> list[Branch]:
    """The rows of a chunk that are of a draft tree; `first` is the chunk's first row."""
    above = () if chunk.above is None else chunk.above
    return [Branch(row, chunk.committed, cells) for row, cells in enumerate(above, first)]
