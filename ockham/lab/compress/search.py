"""`ockham compress`: score, choose, write, judge."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np

from ockham.core.config import EngineConfig
from ockham.core.cost import ProductCost
from ockham.core.errors import ConfigError, ModelError
from ockham.core.owned_files import USUAL_FILE, write_own
from ockham.core.rates import Rates, predict, product_seconds
from ockham.core.registry import make
from ockham.core.seams import Correction, Format, Linear, SizedFormat
from ockham.kernels.backends import find_backend
from ockham.lab.compress.card import Card, Chosen, ChosenShape, card_text
from ockham.lab.compress.choosing import Alternative, Budget, choose, least, require_solver
from ockham.lab.compress.score import Score
from ockham.lab.compress.scoring import Held, Model, Scorer, losses
from ockham.lab.compress.shapes import (
    WHOLE,
    Shaped,
    alternatives_of,
    blocks_of,
    check_widths,
    choices_of,
    reshaping_of,
)
from ockham.lab.compress.text import Texts, read_texts
from ockham.lab.compress.units import STORED, Unit, forms_for, unit_bytes, units_of
from ockham.lab.journal import Journal
from ockham.model.checkpoint.converted import ConvertedSource
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.converting import check_new, convert, tensors_in, unquantised
from ockham.model.hub import resolve, weights_facts
from ockham.model.loading import choose_packer, load_model
from ockham.model.mixing import form_of, tensors_of
from ockham.model.packed.packing import Packer
from ockham.model.program.compile import compile_program
from ockham.model.program.costs import cost_of
from ockham.model.rewriting.applying import MadeTransform, Rewriting
from ockham.model.windows import layouts_for

KIND = "ockham compress"
NOUNS = {"what": "scores", "flag": "--scores"}
CONTEXT = 256
"""Cells that a decode step sees whose seconds are predicted."""
TRIES = 4
"""Mixes that are written at most until one keeps to the floor."""
ROOM = 0.97
"""Of a floor that is missed, what the next mix aims at."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What the result must be; None for what does not matter.

    `bits` a weight, embedding and head and scales included; `nbytes` of weights;
    `tokens_per_second` of decoding one sequence, as the cost model predicts it; `kl` is the largest
    mean KL divergence from the unquantised model.
    """

    bits: float | None = None
    nbytes: int | None = None
    tokens_per_second: float | None = None
    kl: float | None = None

    def check(self) -> None:
        """Raises ConfigError for a goal that says nothing, or is no number above 0."""
        given = {
            "--bits": self.bits,
            "--bytes": self.nbytes,
            "--tokens-per-second": self.tokens_per_second,
            "--floor kl": self.kl,
        }
        if all(value is None for value in given.values()):
            raise ConfigError(f"say how far to compress: {', '.join(given)}.")
        for name, value in given.items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be above 0, got {value}.")


@dataclass(frozen=True, slots=True)
class Search:
    """How alternatives are found: see the flags of `ockham compress`."""

    encode: Callable[[Path, str], Sequence[int]]
    calibration: Path | None = None
    fitted_tokens: int = 8192
    scored_tokens: int = 512
    measured: int = 2
    formats: tuple[str, ...] = ()
    scores: Path | None = None
    widths: tuple[float, ...] = ()
    drop: bool = False
    corrections: tuple[str, ...] = ()


def compress(
    config: EngineConfig, out: Path, goal: Goal, search: Search, tell: Callable[[str], None]
) -> Card:
    """Write the best mix of formats of a model that reaches a goal to the directory `out`. Gives
    the card, which lies in the directory too. Raises ConfigError where no mix reaches the goal,
    with the nearest that does, and as `convert` does."""
    goal.check()
    require_solver()
    out = out.resolve()  # a link's directory is replaced, not the link
    check_new(out)
    if not out.parent.is_dir():
        raise ConfigError(f"there is no directory {out.parent} to write {out.name} into; make it.")
    path = resolve(config.model, config.revision)
    opened = open_model(path)
    try:
        if isinstance(opened.source, ConvertedSource):
            raise ConfigError(f"{path} was converted already; compress the original instead.")
        return _Compressing(config, path, opened, goal, search, tell).run(out)
    finally:
        opened.source.close()


class _Compressing:
    """One model on its way."""

    def __init__(
        self,
        config: EngineConfig,
        path: Path,
        opened: OpenedModel,
        goal: Goal,
        search: Search,
        tell: Callable[[str], None],
    ) -> None:
        self.config, self.path, self.opened = config, path, opened
        self.goal, self.search, self.tell = goal, search, tell
        self.description = opened.description
        if not self.description.generates:
            raise ConfigError(
                "alternatives are scored by what they do to predictions of text, and this model "
                "makes none."
            )
        self.backend = find_backend(config.backend, config.threads)
        if goal.tokens_per_second is not None and self.backend.name != "cpu":
            raise ConfigError("--tokens-per-second is predicted for the backend 'cpu' only.")
        self.stored = choose_packer(config, opened.config, opened.source, self.backend.layout)
        rows = unquantised(opened.source, self.description, self.stored)
        self.plain = Packer(rows.plain, rows.asked, layout=self.backend.layout)
        self.texts: Texts = read_texts(
            search.calibration,
            partial(search.encode, path),
            search.scored_tokens,
            search.fitted_tokens,
            self.description.max_position_embeddings,
        )
        self.units = units_of(tensors_of(self.description, tensors_in(opened.source)))
        check_widths(search.widths)
        for correction in search.corrections:
            make("correction", correction)  # what does not exist is refused before the work
        if rows.asked is not None and (search.widths or search.drop):
            raise ConfigError(
                f"{path} is quantised already, and feed-forwards get narrower, and layers lose "
                "their attention, before anything is rounded: name the original, or leave --widths "
                "and --drop out."
            )
        base: Format = rows.asked or rows.plain
        self.forms = forms_for(self.backend.layout, base, search.formats)
        self.measured = opened.source.measure(self.stored)
        self.program = compile_program(
            self.description, self.measured, self.description.max_position_embeddings
        )

    def run(self, out: Path) -> Card:
        started = perf_counter()
        held = Held(self.opened.source.load(self.plain))
        judge = Model(self.description, held, self.backend, self.texts.judged)
        keys = {id(matrix): key for key, matrix in held.matrices.items()}
        found = blocks_of(judge.program, keys, self.search.widths, self.search.drop)
        self.blocks: list[Shaped] = list(found)
        self._check_bytes()
        judge.judge()
        scores = self._scores(held)
        del held
        prices = self._prices(scores)
        formats = [
            [
                Alternative(score.form, score.nbytes, loss, price)
                for score, loss, price in zip(own, losses(own), prices[unit.name], strict=True)
            ]
            for unit, own in ((unit, scores[unit.name]) for unit in self.units)
        ]
        alternatives = alternatives_of(self.units, formats, self.blocks, self.backend.layout)
        alternatives += [choices_of(block, scores[block.name]) for block in self.blocks]
        return self._written(out, alternatives, judge, started)

    def _check_bytes(self) -> None:
        """Raises ConfigError where even the smallest format of every unit is too large."""
        limit = self._most_bytes()
        if limit is None:
            return
        forms = [make("format", form) for form in self.forms]
        nbytes = self._least_bytes([each for each in forms if not isinstance(each, SizedFormat)])
        if nbytes > limit:  # the values are read only where they may change what is said
            nbytes = self._least_bytes(forms)
        if nbytes > limit:
            raise ConfigError(
                f"no mix of {len(forms)} formats reaches the goal, as the smallest of each tensor "
                f"take more; the nearest that can: --bits "
                f"{8 * nbytes / self.measured.parameters + 0.005:.2f} or --bytes {nbytes}."
            )

    def _least_bytes(self, forms: Sequence[Format]) -> int:
        """Of all weights, if every unit has the smallest of these formats or is left as it is, and
        every block its smallest shape."""
        source = self.opened.source
        tensors, stored = tensors_in(source), source.measure(self.stored)
        shares = {
            key: min(1.0, *(shape.width / block.inner for shape in block.shapes))
            for block in self.blocks
            for key in block.matrices
        }
        least = whole = 0
        for unit in self.units:
            own = sum(
                stored.linear([each.part for each in piece], piece[0].role).nbytes
                for piece in unit.pieces
            )
            packed = [unit_bytes(unit, each, self.backend.layout, tensors) for each in forms]
            found = min([own, *(each for each in packed if each is not None)])
            least += int(found * shares.get(unit.matrices[0], 1.0))
            whole += own
        return self.measured.bytes - whole + least

    # -- scores --------------------------------------------------------------------------------

    def _scores(self, held: Held) -> dict[str, list[Score]]:
        """Of each unit, from the journal or measured now."""
        settings = {
            "model": self.config.model,
            "weights": hashlib.sha256(weights_facts(self.path).encode()).hexdigest(),
            "parameters": self.measured.parameters,
            "backend": self.backend.numerics(()),
            "text": self.texts.fitted.digest,
            "scored_tokens": int(self.texts.scored.size),
            "fitted_tokens": int(self.texts.fitted.windows.size),
            "formats": self.forms,
            "measured": self.search.measured,
        }
        if self.blocks:
            settings["shapes"] = {b.name: [each.name for each in b.shapes] for b in self.blocks}
        if self.search.corrections:
            settings["corrections"] = list(self.search.corrections)
        with Journal(self.search.scores, settings, _Entry, kind=KIND, **NOUNS) as journal:
            known = {entry.unit: entry.scores for entry in journal.results}
            wanted: list[Unit | Shaped] = [*self.units, *self.blocks]
            missing = [unit for unit in wanted if unit.name not in known]
            if not missing:
                return known
            what = "tensors and blocks" if self.blocks else "tensors"
            if known:
                self.tell(f"{len(known)} of {len(wanted)} {what} were scored before")
            model = Model(self.description, held, self.backend, self.texts.scored)
            model.judge()
            scorer = Scorer(
                model,
                self.opened.source,
                tensors_in(self.opened.source),
                self.stored,
                self.plain,
                self.texts.fitted.windows,
                self.forms,
                self.search.measured,
                self.blocks,
                self.search.corrections,
            )
            started = perf_counter()
            for done, (unit, scores) in enumerate(scorer.scores(self.units, known), 1):
                journal.add(_Entry(unit.name, scores))
                known[unit.name] = scores
                left_s = (perf_counter() - started) / done * (len(missing) - done)
                self.tell(
                    f"scored {len(known)} of {len(wanted)} {what}, about "
                    f"{left_s / 60:.0f} min left: {unit.name}"
                )
            return known

    def _prices(self, scores: Mapping[str, Sequence[Score]]) -> dict[str, list[float]]:
        """Seconds that each alternative takes of a decode step; 0 where speed is no goal."""
        if self.goal.tokens_per_second is None:
            return {name: [0.0] * len(own) for name, own in scores.items()}
        rates = self._rates(scores)
        layouts = layouts_for(self.description, 1, CONTEXT, "float32")
        step = predict(
            cost_of(self.program, layouts), rates, [(CONTEXT, 1)], 1, self.description.vocab_size
        )
        prices = {}
        for unit in self.units:
            prices[unit.name] = [self._seconds(unit, each, rates) for each in scores[unit.name]]
        stored = sum(
            price
            for unit in self.units
            for each, price in zip(scores[unit.name], prices[unit.name], strict=True)
            if each.form == STORED
        )
        self._other_s = max(0.0, step.total - stored)
        return prices

    _other_s = 0.0
    """Seconds of a decode step beside the products of the units."""

    def _seconds(self, unit: Unit, score: Score, rates: Rates) -> float:
        first = unit.tensors[0]
        if first.role == "embedding" and not self.description.tied_embeddings:
            return 0.0
        pieces = unit.pieces
        count, inputs = len(pieces), first.shape[1]
        outputs = sum(tensor.shape[0] for tensor in pieces[0])
        experts = self.description.experts
        routed = count > 1 and experts is not None
        named = form_of(score.form)[1]
        correction: Correction | None = None if named is None else make("correction", named)
        product = ProductCost(
            score.kernel,
            outputs,
            inputs,
            score.nbytes // count,
            1,
            experts=count if routed else 0,
            experts_per_row=experts.per_token if routed and experts is not None else 0,
            rank=0 if correction is None else min(correction.rank, outputs, inputs),
        )
        return product_seconds(product, rates)

    def _rates(self, scores: Mapping[str, Sequence[Score]]) -> Rates:
        """Of every kernel that an alternative has, probed now."""
        from ockham.kernels.cores import allowed_cores
        from ockham.lab.calibrate import calibrate
        from ockham.lab.kernels.limits import Limits

        self.tell("probing how fast the kernels of the formats are")
        found: dict[str, Linear] = {}
        for unit in self.units:
            tensor = unit.tensors[0]
            for score in scores[unit.name]:
                if score.kernel not in found and score.form != STORED:
                    made: Format = make("format", form_of(score.form)[0])
                    rows = np.ones((16, tensor.shape[1]), np.float32)
                    found[score.kernel] = made.pack(*rows.shape, [rows], self.backend.layout)
        program = compile_program(
            self.description,
            self.opened.source.load(self.stored),
            self.description.max_position_embeddings,
        )
        limits = Limits(self.config.threads or allowed_cores())
        return calibrate(program, "float32", limits, found.values())

    # -- the mix -------------------------------------------------------------------------------

    def _written(
        self,
        out: Path,
        alternatives: Sequence[Sequence[Alternative]],
        judge: Model,
        started: float,
    ) -> Card:
        """Choose and write until the mix keeps to the floor and to the bytes, if there are any."""
        budget, scale = self._budget(alternatives), 1.0
        limit = self._most_bytes()
        for number in range(TRIES):
            own = budget if budget.loss is None else _scaled(budget, scale)
            chosen = choose(alternatives, own)
            if chosen is None:
                raise ConfigError(self._nearest(alternatives, own, scale))
            picked = [each[i] for each, i in zip(alternatives, chosen, strict=True)]
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
                made = Path(scratch) / "made"
                nbytes = self._convert(picked, made)
                kl = self._judged(made, judge)
                predicted = sum(each.loss for each in picked)
                self.tell(
                    f"mix of {8 * nbytes / self.measured.parameters:.2f} bits a weight: "
                    f"KL {kl:.4g} on text that nothing was fitted to ({predicted:.4g} predicted)"
                )
                near = self.goal.kl is None or kl <= self.goal.kl
                over = 0.0 if limit is None else max(0.0, nbytes - limit)
                if near and not over:
                    card = self._card(picked, nbytes, kl, perf_counter() - started)
                    _finish(made, out, card)
                    return card
            # The parts' losses do not quite add up: aim lower by as much as they missed. Nor are
            # bytes of narrower matrices quite the share that stays of the whole ones'.
            if not near and self.goal.kl is not None:
                scale *= ROOM * self.goal.kl / kl
            if over and budget.nbytes is not None:
                budget = replace(budget, nbytes=budget.nbytes - over)
            if number == TRIES - 1 or (predicted == 0.0 and not over):
                break
        raise ConfigError(
            f"no mix that was tried keeps to the goal: the last one has a KL of {kl:.3g} and "
            f"{nbytes:,} bytes. Allow more bits, a higher KL, or more formats."
        )

    def _most_bytes(self) -> float | None:
        """What all weights may take."""
        goal = self.goal
        limits = [
            *([] if goal.bits is None else [goal.bits * self.measured.parameters / 8]),
            *([] if goal.nbytes is None else [float(goal.nbytes)]),
        ]
        return min(limits) if limits else None

    def _budget(self, alternatives: Sequence[Sequence[Alternative]]) -> Budget:
        """What the units may take: the goal less what stands beside them."""
        seconds, limit = None, self._most_bytes()
        if self.goal.tokens_per_second is not None:
            seconds = 1 / self.goal.tokens_per_second - self._other_s
        nbytes = None if limit is None else limit - self._beside_bytes(alternatives)
        return Budget(nbytes, seconds, self.goal.kl)

    def _beside_bytes(self, alternatives: Sequence[Sequence[Alternative]]) -> int:
        """Bytes of what is no unit: norms, biases, tables of positions."""
        stored = sum(
            each.nbytes
            for own in alternatives
            for each in own
            if each.form == STORED and each.shape in ("", WHOLE)
        )
        return self.measured.bytes - stored

    def _nearest(
        self, alternatives: Sequence[Sequence[Alternative]], budget: Budget, scale: float
    ) -> str:
        """What is said where no mix is in the budget: the nearest that is for each limit."""
        beside = self._beside_bytes(alternatives)
        said = []
        if budget.nbytes is not None:
            found = least(alternatives, "nbytes", Budget(None, budget.seconds, budget.loss))
            if found is not None:
                bits = 8 * (found + beside) / self.measured.parameters
                said.append(f"--bits {bits + 0.005:.2f}")
        if budget.seconds is not None:
            found = least(alternatives, "seconds", Budget(budget.nbytes, None, budget.loss))
            if found is not None:
                said.append(f"--tokens-per-second {1 / (found + self._other_s):.1f}")
        if budget.loss is not None:
            found = least(alternatives, "loss", Budget(budget.nbytes, budget.seconds, None))
            if found is not None:
                said.append(f"--floor kl={found / scale * 1.01:.3g}")
        nearest = " or ".join(said) or "none, whatever one limit were"
        count = len(self.forms)
        return f"no mix of {count} formats reaches the goal; the nearest that can: {nearest}."

    def _convert(self, picked: Sequence[Alternative], made: Path) -> int:
        mix = {
            tensor.key: each.form
            for unit, each in zip(self.units, picked, strict=False)
            for tensor in unit.tensors
            if each.nbytes
        }
        config, rewriting = self.config, None
        shapes = [each.shape for each in picked[len(self.units) :]]
        reshaping = reshaping_of(self.blocks, shapes)
        if reshaping is not None:
            rewriting = Rewriting((MadeTransform(KIND, reshaping),))
            config = msgspec.structs.replace(config, dtype=self._plain_dtype())
        quiet: Callable[[str], None] = lambda line: None  # noqa: E731
        return convert(config, made, quiet, self.texts.fitted, mix=mix, rewriting=rewriting)

    def _plain_dtype(self) -> str:
        """What is stored otherwise than in a format: the checkpoint's own dtype."""
        dtype = self.config.dtype
        return self.opened.source.plain_dtype() if dtype == "auto" else dtype

    def _judged(self, directory: Path, judge: Model) -> float:
        """The KL divergence of what was written, loaded as anybody would."""
        settings = {"model": str(directory), "revision": None, "weight_cache": "off"}
        config = msgspec.structs.replace(self.config, **settings)
        config = msgspec.structs.replace(
            config, kv_cache_memory_bytes=64 << 20, max_model_len=self.texts.judged.shape[1]
        )
        loaded = load_model(config)
        return judge.of(loaded.description).divergence(loaded.program)

    def _card(self, picked: Sequence[Alternative], nbytes: int, kl: float, seconds: float) -> Card:
        chosen = [
            Chosen(
                unit.name,
                each.form if each.nbytes else each.shape,
                8 * each.nbytes / unit.parameters,
                each.nbytes,
                each.loss,
            )
            for unit, each in zip(self.units, picked, strict=False)
        ]
        shapes = [
            ChosenShape(block.name, each.shape, each.loss)
            for block, each in zip(self.blocks, picked[len(self.units) :], strict=True)
        ]
        speed = None
        if self.goal.tokens_per_second is not None:
            speed = 1 / (sum(each.seconds for each in picked) + self._other_s)
        return Card(
            model=self.config.model,
            bits=8 * nbytes / self.measured.parameters,
            nbytes=nbytes,
            kl=kl,
            predicted_kl=sum(each.loss for each in picked),
            judged_tokens=int(self.texts.judged.size),
            tokens_per_second=speed,
            goal={
                name: value
                for name in Goal.__dataclass_fields__
                if (value := getattr(self.goal, name)) is not None
            },
            text=self.texts.fitted.digest,
            own_text=self.search.calibration is None,
            seconds=seconds,
            chosen=chosen,
            shapes=shapes,
        )


class _Entry(msgspec.Struct, frozen=True):
    """One line of the journal: a unit's scores."""

    unit: str
    scores: list[Score]


def _scaled(budget: Budget, scale: float) -> Budget:
    assert budget.loss is not None
    return Budget(budget.nbytes, budget.seconds, budget.loss * scale)


def _finish(made: Path, out: Path, card: Card) -> None:
    """Put the card beside the weights, and all at its place."""
    try:
        write_own(made / "compression.json", msgspec.json.encode(card), USUAL_FILE)
        write_own(made / "README.md", card_text(card).encode(), USUAL_FILE)
        if out.exists():
            out.rmdir()  # it is empty
        made.rename(out)
    except OSError as error:
        raise ModelError(f"writing {out} failed: {error.strerror or error}.") from error
