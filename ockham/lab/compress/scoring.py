"""What each alternative of each unit does to the model's predictions, alone.

The unquantised model reads windows of a text. A unit's tensor is replaced, and only what comes
after it is computed anew: the hidden states before its layer are those of the unquantised model.
Its score is the mean KL divergence of the predictions, from the unquantised ones.

Running the rest of the model for every alternative would take most of the time, so only some are
run. The error that an alternative makes in the unit's own outputs is measured for all, which takes
one product; between alternatives of one unit the divergence follows that error, as a divergence is
quadratic in a small change and the error is a square.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import msgspec
import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ModelError
from ockham.core.registry import make
from ockham.core.seams import Correction, FittedFormat, Format, Linear, Role
from ockham.core.step import Step
from ockham.kernels.base import Backend
from ockham.kernels.ops import Program, kernel_of
from ockham.lab.compress.score import Score
from ockham.lab.compress.shapes import Shaped, writing
from ockham.lab.compress.units import STORED, Unit, fits
from ockham.model.calibration import Layers, Observed, layer_ranges
from ockham.model.checkpoint.sources import Source, TensorSource
from ockham.model.mixing import AND, Tensor
from ockham.model.packed.layout import key_of, vector_key
from ockham.model.packed.packing import Packer
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, VectorPart, Weights, matrix_shape
from ockham.model.windows import layouts_for, window_step
from ockham.weights.correcting import corrected
from ockham.weights.stacked import StackedLinear

SAMPLE = 256
"""Inputs of a product that the error of its outputs is measured on, at most."""

LOGITS_AT_ONCE = 256
"""Rows of a step whose logits are wanted."""


class Held:
    """Loaded weights by key, of which a compiler may take some from elsewhere."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.matrices: dict[str, Linear] = {}
        self.vectors: dict[str, Floats] = {}
        self.replaced: Mapping[str, Linear] = {}

    def has(self, name: str) -> bool:
        return self._weights.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        key = key_of(parts)
        if key in self.replaced:
            return self.replaced[key]
        if key not in self.matrices:
            self.matrices[key] = self._weights.linear(parts, role)
        return self.matrices[key]

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        key = vector_key(parts)
        if key not in self.vectors:
            self.vectors[key] = self._weights.vector(parts, offset)
        return self.vectors[key]


class Watched(Observed):
    """A matrix that also keeps some of what it multiplies."""

    sample: Floats | None = None

    def matmul(self, x: Floats) -> Floats:
        if self.sample is None:
            self.sample = x[:: max(1, len(x) // SAMPLE)][:SAMPLE].copy()
        return super().matmul(x)


class _WatchedWeights:
    """Every matrix of a model, watched."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.matrices: dict[str, Watched] = {}

    def has(self, name: str) -> bool:
        return self._weights.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        watched = Watched(parts, self._weights.linear(parts, role), role)
        return self.matrices.setdefault(key_of(parts), watched)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        return self._weights.vector(parts, offset)


class Predictions:
    """The logits of some windows under one model, as what is needed to compare another's."""

    def __init__(self, logits: Floats) -> None:
        """`logits` (positions, vocabulary) are overwritten."""
        logits -= logits.max(axis=1, keepdims=True)
        total = np.exp(logits).sum(axis=1, dtype=np.float64)
        logits -= np.log(total).astype(np.float32)[:, None]
        self._log = logits
        self._chances: Floats = np.exp(logits)

    def divergence(self, logits: Floats) -> float:
        """The mean KL divergence (nats) of other logits from these, which are overwritten."""
        logits -= logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits).sum(axis=1, dtype=np.float64))
        gap = np.einsum("pv,pv->p", self._chances, self._log - logits, dtype=np.float64)
        return max(0.0, float((gap + total).mean()))


class Model:
    """The unquantised model on a backend, its windows, and their predictions."""

    def __init__(
        self,
        description: ModelDescription,
        held: Held,
        backend: Backend,
        windows: Ints,
        rows_per_step: int = 512,
    ) -> None:
        self.description, self.held, self.backend = description, held, backend
        self._windows, self._rows_per_step = windows, rows_per_step
        self._make_steps()
        self.program = self.compiled({})
        self.predictions: list[Predictions] = []

    def _make_steps(self) -> None:
        windows, length = self._windows, self._windows.shape[1]
        at_once = max(1, self._rows_per_step // length)
        layouts = layouts_for(self.description, at_once, length, "float32")
        self._planes = self.backend.allocate(layouts)
        self.steps: list[Step] = []
        for start in range(0, len(windows), at_once):
            rows = windows[start : start + at_once]
            step = window_step(rows, len(layouts))
            every = max(1, rows.size // LOGITS_AT_ONCE)
            step.wants_logits = np.arange(every - 1, rows.size, every, dtype=np.int32)
            self.steps.append(step)

    def of(self, description: ModelDescription) -> Model:
        """What judges a model of another description, by the same predictions."""
        if description.groups == self.description.groups:
            return self
        other = copy.copy(self)
        other.description = description
        other._make_steps()
        return other

    def compiled(self, replaced: Mapping[str, Linear]) -> Program:
        """The program with other matrices in the place of some, by key."""
        self.held.replaced = replaced
        program = compile_program(
            self.description, self.held, self.description.max_position_embeddings
        )
        self.held.replaced = {}
        return program

    def logits(
        self, program: Program, start: int = 0, at: Sequence[Floats] = ()
    ) -> Iterator[Floats]:
        """The logits of each step, from the operation `start` on, where `at` are the activations
        that come before it."""
        executor = self.backend.bind(program, self._planes)
        for number, step in enumerate(self.steps):
            run = executor.begin(step)
            if start:
                executor.run(run, 0, 1)  # a run has activations once it is embedded
                run.x = at[number]
            executor.run(run, start, len(program.ops))
            yield executor.finish(run).logits.copy()

    def judge(self) -> None:
        """Take the unquantised predictions to be right from here on."""
        self.predictions = [Predictions(logits) for logits in self.logits(self.program)]

    def divergence(self, program: Program, start: int = 0, at: Sequence[Floats] = ()) -> float:
        found = [
            right.divergence(logits)
            for right, logits in zip(self.predictions, self.logits(program, start, at), strict=True)
        ]
        weights = [len(step.wants_logits) for step in self.steps]
        return float(np.average(found, weights=weights))

    def advanced(self, start: int, stop: int, at: Sequence[Floats]) -> list[Floats]:
        """The activations before the operation `stop`, from those before `start`."""
        executor = self.backend.bind(self.program, self._planes)
        found = []
        for number, step in enumerate(self.steps):
            run = executor.begin(step)
            if start:
                executor.run(run, 0, 1)  # a run has activations once it is embedded
                run.x = at[number]
            executor.run(run, start, stop)
            found.append(run.x.copy())
        return found


class Scorer:
    """Scores the alternatives of a model's units, layer by layer."""

    def __init__(
        self,
        model: Model,
        source: Source,
        tensors: TensorSource,
        stored: Packer,
        plain: Packer,
        windows: Ints,
        forms: Sequence[str],
        measured: int,
        blocks: Sequence[Shaped] = (),
        corrections: Sequence[str] = (),
    ) -> None:
        """`stored` packs a tensor as loading it without any quantization would, `plain` rounds
        nothing; `windows` give the inputs that formats are fitted to. Of each unit `measured`
        alternatives are run, and of `blocks` every shape. `corrections` are tried beside each form
        that is worth keeping."""
        self._model, self._source, self._tensors = model, source, tensors
        self._stored, self._plain = stored, plain
        self._windows, self._forms, self._measured = windows, forms, measured
        self._blocks, self._corrections = blocks, corrections
        self._by_key: dict[str, Tensor] = {}

    def scores(
        self, units: Sequence[Unit], known: Mapping[str, Sequence[Score]]
    ) -> Iterator[tuple[Unit | Shaped, list[Score]]]:
        """Each unit and block that is not known, and its scores."""
        model = self._model
        self._by_key = {tensor.key: tensor for unit in units for tensor in unit.tensors}
        watched = _WatchedWeights(model.held)
        program = compile_program(
            model.description, watched, model.description.max_position_embeddings
        )
        layers = Layers(program, model.description, self._windows)
        places = self._places(units)
        at: list[Floats] = model.advanced(0, 1, [])
        for number, (_, start, stop) in enumerate(layers.ranges()):
            own = [unit for unit in units if places[unit.name] == start and unit.name not in known]
            layers.run(start, stop)
            for unit in own:
                yield unit, self._scored(unit, watched.matrices, start, at)
            for block in self._blocks:
                if block.layer == number and block.name not in known:
                    yield block, self._shaped(block, watched.matrices, start, at)
            for matrix in watched.matrices.values():
                matrix.moments = matrix.sample = None
            if stop < len(model.program.ops):
                at = model.advanced(start, stop, at)

    def _places(self, units: Sequence[Unit]) -> dict[str, int]:
        """The operation where the range begins that a unit is scored in. A table of embeddings is
        scored with the head, when its inputs there are known."""
        model, places = self._model, {}
        starts = [s for _, s, _ in layer_ranges(model.program)]
        by_identity = {id(each): key for key, each in model.held.matrices.items()}
        for number, op in enumerate(model.program.ops):
            start = max((s for s in starts if s <= number), default=starts[-1])
            for matrix in op.matrices().values():
                places[by_identity[id(matrix)]] = start
        return {unit.name: places[unit.matrices[0]] for unit in units}

    def _scored(
        self, unit: Unit, watched: Mapping[str, Watched], start: int, at: Sequence[Floats]
    ) -> list[Score]:
        """The scores of one unit."""
        role = unit.tensors[0].role
        table = role == "embedding"
        forms = [STORED, *(form for form in self._forms if fits(form, unit.inputs))]
        packed: dict[str, list[Linear]] = {}
        found: list[Score] = []
        for form in forms:
            try:
                packed[form] = [self._packed(each, form, watched) for each in unit.pieces]
            except ModelError:  # a format that cannot hold such weights is no alternative
                continue
            nbytes = sum(each.nbytes for each in packed[form])
            error = self._error(unit, packed[form], watched)
            found.append(Score(unit.name, form, kernel_of(packed[form][0]), nbytes, error))
        kept = worth_keeping(found)
        if self._corrections and unit.matrices[0] in self._correctable:
            packed = {each.form: packed[each.form] for each in kept}
            added = self._corrected(unit, kept, packed, watched)
            kept = worth_keeping([found[0], *(each for each in kept if each != found[0]), *added])
        # Tables are few, large, and what much of the loss is due to.
        count = len(kept) if role in ("embedding", "head") else self._measured
        chosen = _spread(kept, count)
        scored = []
        for number, each in enumerate(kept):
            loss = 0.0 if each.error == 0.0 else None
            if number in chosen and loss is None:
                program = self._with(unit, packed[each.form])
                loss = self._model.divergence(program, *((0, ()) if table else (start, at)))
            scored.append(msgspec.structs.replace(each, loss=loss))
        return scored

    @cached_property
    def _correctable(self) -> frozenset[str]:
        """The keys of the matrices to whose products something may be added."""
        keys = {id(each): key for key, each in self._model.held.matrices.items()}
        ops = self._model.program.ops
        return frozenset(keys[id(op.matrices()[name])] for op in ops for name in op.adaptable)

    def _corrected(
        self,
        unit: Unit,
        kept: Sequence[Score],
        packed: dict[str, list[Linear]],
        watched: Mapping[str, Watched],
    ) -> list[Score]:
        """The scores of a unit's rounded forms with each correction; what is packed is added."""
        found = []
        moments = watched[unit.matrices[0]].moments
        weights = [np.concatenate([self._weights(t) for t in piece]) for piece in unit.pieces]
        for form in [each.form for each in kept if each.form != STORED and each.error > 0]:
            if make("format", form).dtype is not None:  # nothing is rounded that a sum would mend
                continue
            for name in self._corrections:
                correction: Correction = make("correction", name)
                if correction.needs_text and moments is None:
                    continue
                both = f"{form}{AND}{name}"
                own: list[Linear] = [
                    corrected(linear, values, correction, moments)
                    for linear, values in zip(packed[form], weights, strict=True)
                ]
                packed[both] = own
                nbytes = sum(each.nbytes for each in own)
                error = self._error(unit, own, watched)
                found.append(Score(unit.name, both, kernel_of(own[0]), nbytes, error))
        return found

    def _weights(self, tensor: Tensor) -> Floats:
        blocks = self._tensors.rows(tensor.part)
        return np.concatenate([np.array(block, np.float32) for block in blocks])

    def _shaped(
        self, block: Shaped, watched: Mapping[str, Watched], start: int, at: Sequence[Floats]
    ) -> list[Score]:
        """The scores of a block's shapes, in the place of what it is."""
        matrix, found = watched[block.writes], []
        moments, sample = matrix.moments, matrix.sample
        assert moments is not None, "its layer was run"
        assert sample is not None, "its layer was run"
        down = matrix.linear.rows(np.arange(matrix.out_features, dtype=np.int32))
        right = float(np.square(sample @ down.T, dtype=np.float64).sum())
        for shape in block.shapes:
            values = writing(down, moments, shape)
            form = self._plain.asked or self._plain.plain
            rows, columns = values.shape
            linear = form.pack(rows, columns, [values], self._plain.layout)
            program = self._model.compiled({block.writes: linear})
            loss = self._model.divergence(program, start, at)
            wrong = float(np.square(sample @ (values - down).T, dtype=np.float64).sum())
            error = wrong / right if right else 0.0
            found.append(Score(block.name, shape.name, "", 0, error, loss))
        return found

    def _packed(self, piece: Sequence[Tensor], form: str, watched: Mapping[str, Watched]) -> Linear:
        """Tensors in one form, fitted where the form can be and they have inputs."""
        parts, first = [tensor.part for tensor in piece], piece[0]
        if form == STORED:
            return self._source.load(self._stored).linear(parts, first.role)
        made: Format = make("format", form)
        moments = watched[first.matrix].moments
        if isinstance(made, FittedFormat) and moments is not None:
            weights = np.concatenate([self._weights(tensor) for tensor in piece])
            return made.fit(weights, moments, self._plain.layout)
        blocks = (block for part in parts for block in self._tensors.rows(part))
        return made.pack(*matrix_shape(parts), blocks, self._plain.layout)

    def _error(self, unit: Unit, packed: Sequence[Linear], watched: Mapping[str, Watched]) -> float:
        """The squared error of the outputs on the kept inputs, by their squares; of what has no
        inputs (a table, an expert that nobody chose) that of the weights."""
        wrong = right = 0.0
        for piece, linear in zip(unit.pieces, packed, strict=True):
            first, matrix = piece[0].first, watched[piece[0].matrix]
            x, plain = matrix.sample, matrix.linear
            if x is not None:
                rows = slice(first, first + linear.out_features)
                before, after = plain.matmul(x)[:, rows], linear.matmul(x)
            else:
                ids = _sampled(linear.out_features)
                before, after = plain.rows(ids + np.int32(first)), linear.rows(ids)
            wrong += float(np.square(after - before, dtype=np.float64).sum())
            right += float(np.square(before, dtype=np.float64).sum())
        return wrong / right if right else 0.0

    def _with(self, unit: Unit, packed: Sequence[Linear]) -> Program:
        """The unquantised program with these in the place of a unit's tensors."""
        keys = [key_of([tensor.part for tensor in piece]) for piece in unit.pieces]
        made = dict(zip(keys, packed, strict=True))
        replaced: dict[str, Linear] = {}
        for key in unit.matrices:
            if key in made:
                replaced[key] = made[key]
                continue
            parts = key.split("+")
            replaced[key] = StackedLinear([made.get(p) or self._plain_part(p) for p in parts])
        return self._model.compiled(replaced)

    def _plain_part(self, key: str) -> Linear:
        """One tensor as the unquantised model has it."""
        tensor = self._by_key[key]
        return self._source.load(self._plain).linear([tensor.part], tensor.role)


def losses(scores: Sequence[Score]) -> list[float]:
    """The loss of every alternative of a unit: as it was measured; between two that were, on the
    line through them in logarithms of error and loss; beyond them in proportion to the error."""
    known = sorted((each.error, each.loss) for each in scores if each.loss and each.error > 0)
    return [
        each.loss if each.loss is not None else _estimated(each.error, known) for each in scores
    ]


def _estimated(error: float, known: Sequence[tuple[float, float]]) -> float:
    if not known or error <= 0:
        return 0.0
    for (low, low_loss), (high, high_loss) in pairwise(known):
        if low <= error < high:
            share = math.log(error / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(low_loss) + share * math.log(high_loss))
    nearest, loss = known[0] if error < known[0][0] else known[-1]
    return loss * error / nearest


def worth_keeping(scores: Sequence[Score]) -> list[Score]:
    """The first, which is what is stored, and of the others those that are smaller and that none
    beats in bytes and error; the smallest first."""
    stored, *others = scores
    others = [each for each in others if each.nbytes < stored.nbytes]
    kept = [each for each in others if not any(_dominates(other, each) for other in others)]
    return sorted([stored, *kept], key=lambda each: each.nbytes)


def _dominates(one: Score, other: Score) -> bool:
    """Whether an alternative is smaller and errs less."""
    as_good = one.nbytes <= other.nbytes and one.error <= other.error
    return as_good and (one.nbytes, one.error) != (other.nbytes, other.error)


def _spread(scores: Sequence[Score], count: int) -> set[int]:
    """The numbers of so many alternatives, spread evenly from the one that errs most."""
    erring = [n for n, each in enumerate(scores) if each.error > 0]
    if count >= len(erring):
        return set(erring)
    return {erring[i * len(erring) // count] for i in range(count)}


def _sampled(rows: int) -> Ints:
    return np.arange(0, rows, max(1, rows // SAMPLE), dtype=np.int32)[:SAMPLE]
