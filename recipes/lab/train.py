"""Training: one loop over the steps of a plan, resumed from its last checkpoint.

Muon for the matrices of the layers, AdamW for the rest: embedding, norms, gates of experts,
adapters (which learn alone). Between two phases of different depth the model grows by stacking: the
new layers are copies of the old ones, in order (Du et al., "Stacking Your Transformers", 2024,
arXiv:2405.15319).
"""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from recipes.lab import skills
from recipes.lab.data import Batches, Streams
from recipes.lab.evaluate import evaluate, share_right
from recipes.lab.lora import adapt, is_adapter
from recipes.lab.model import LabModel, Shape
from recipes.lab.muon import Float32Muon
from recipes.lab.plan import Phase, Plan
from recipes.lab.start import begin, read_start

CURVE_FIELDS = (
    "step",
    "tokens",
    "layers",
    "context",
    "rate",
    "loss",
    "held_out_code",
    "held_out_prose",
    "right",
    "seconds",
)
_ASKED_ITEMS = 8
"""Of each level: few, as they are asked often."""
_EVALUATED_WINDOWS = 24
_EVALUATED_CONTEXT = 512
_SAMPLE_TOKENS = 2048


class Trainer:
    """A model in training, its optimisers, and the folder that keeps both."""

    def __init__(
        self,
        plan: Plan,
        streams: Streams,
        folder: Path,
        tokenizer: Tokenizer | None = None,
        start: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """`tokenizer` is needed by phases that teach skills; `start` is the safetensors file that
        a plan with `start_sha256` begins from. `device` is "cpu" or "cuda"."""
        self.plan, self.streams, self.folder, self.tokenizer = plan, streams, folder, tokenizer
        self.device = torch.device(device)
        self.step = 0
        self.phase = 0
        self.deterministic = True  # false for a run begun before its gradients were
        self.model = self._new_model(0)
        if plan.start_sha256 and not self._checkpoint.exists():
            dense = read_start(plan.start_sha256, start)
            sample = torch.from_numpy(streams.train["code"][:_SAMPLE_TOKENS].astype(np.int64))
            begin(self.model.cpu(), dense, sample[None])
            self.model.to(self.device)
        self._start_phase()
        folder.mkdir(parents=True, exist_ok=True)
        self._curve = folder / "curve.csv"
        if self._checkpoint.exists():
            self._load()

    @property
    def done(self) -> bool:
        """Whether every step of the plan has been made."""
        return self.step >= self.plan.steps

    def run(self, until: int | None = None, minutes: float = float("inf")) -> None:
        """Train to step ``until`` (the end by default), or stop cleanly after ``minutes``."""
        # Else a compiled scatter (the embedding's gradient) adds in the order that threads arrive.
        torch.use_deterministic_algorithms(True)
        self._trim_curve()
        deadline = time.monotonic() + 60 * minutes
        last = min(self.plan.steps, until if until is not None else self.plan.steps)
        while self.step < last and time.monotonic() < deadline:
            started = time.monotonic()
            loss = self._make_step()
            evaluated = self._evaluate() if self._is_due(self.plan.evaluation_steps) else {}
            self._log(loss, evaluated, time.monotonic() - started)
            if self._is_due(self.plan.checkpoint_steps):
                self.save()
        self.save()

    def autocast(self) -> torch.autocast:
        """What products are computed in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.bfloat16)

    def save(self) -> None:
        """Write the checkpoint: the old one stays whole until the new one is."""
        partial = self._checkpoint.with_suffix(".partial")
        state = {
            "step": self.step,
            "deterministic": self.deterministic,
            "plan": dataclasses.asdict(self.plan),
            "corpus_sha256": self.streams.corpus_sha256,
            "model": self.model.state_dict(),
            **{name: each.state_dict() for name, each in self.optimisers.items()},
        }
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._checkpoint)

    def seconds(self) -> float:
        """What the steps of the curve took together."""
        with self._curve.open(newline="") as file:
            return sum(float(row["seconds"]) for row in csv.DictReader(file))

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _new_model(self, phase: int) -> LabModel:
        plan = self.plan
        shape = dataclasses.replace(plan.shape, layers=plan.phases[phase].layers)
        model = LabModel(shape, plan.seed)
        if plan.lora_rank:
            adapt(model, plan.lora_rank, plan.lora_alpha, plan.seed)
        return model.to(self.device)

    def _start_phase(self) -> None:
        """Build what depends on the phase: optimisers, batches, the compiled loss."""
        phase = self.plan.phases[self.phase]
        learned = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        matrices = [p for name, p in learned.items() if _is_matrix(name, p)]
        vectors = [p for name, p in learned.items() if not _is_matrix(name, p)]
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "vectors": torch.optim.AdamW(
                vectors, lr=self.plan.vector_rate, betas=(0.9, 0.95), weight_decay=0.0
            )
        }
        if matrices:
            muon = torch.optim.Muon if self.plan.bfloat16 else Float32Muon
            self.optimisers["matrices"] = muon(
                matrices,
                lr=self.plan.matrix_rate,
                weight_decay=self.plan.weight_decay,
                momentum=0.95,
            )
        self.batches = self._batches(phase)
        trunk = self.model.hidden

        def hidden(ids: Tensor) -> Tensor:
            with self.autocast():
                return trunk(ids)

        torch.compiler.reset()
        self._hidden: Callable[[Tensor], Tensor] = (
            torch.compile(hidden, dynamic=False) if self.plan.compiled else hidden
        )

    def _batches(self, phase: Phase) -> Batches | skills.SkillBatches:
        if phase.mixture not in skills.MIXTURES:
            return Batches(
                self.streams.train, self.plan.seed, self.phase, phase.context, phase.mixture
            )
        if self.tokenizer is None:
            raise ValueError(f"The mixture {phase.mixture!r} needs a tokenizer.")
        return skills.SkillBatches(
            self.streams.train,
            self.tokenizer,
            self.plan.seed,
            self.phase,
            phase.context,
            phase.mixture,
        )

    def _enter_phase(self, number: int) -> None:
        """Go to the next phase; the optimisers' state goes along, layer by layer."""
        shallow = self.model
        states = {
            name: state
            for name, parameter in shallow.named_parameters()
            for optimiser in self.optimisers.values()
            if (state := optimiser.state.get(parameter)) is not None
        }
        self.phase = number
        self.model = self._new_model(number)
        self._start_phase()
        sources = dict(shallow.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                source = source_of(name, shallow.shape.layers)
                parameter.copy_(sources[source])
                if source in states:
                    kind = "matrices" if _is_matrix(name, parameter) else "vectors"
                    self.optimisers[kind].state[parameter] = {
                        key: value.clone() for key, value in states[source].items()
                    }

    def _make_step(self) -> float:
        number, step = self.plan.at(self.step)
        if number != self.phase:
            self._enter_phase(number)
        plan, phase = self.plan, self.plan.phases[number]
        rates = {"matrices": plan.matrix_rate, "vectors": plan.vector_rate}
        for kind, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = rates[kind] * plan.rate(self.step)
        batch_ids, batch_weights = self.batches.batch(step, plan.tokens_of(phase) // phase.context)
        ids, weights = (
            torch.from_numpy(each).to(self.device) for each in (batch_ids, batch_weights)
        )
        rows = max(1, plan.micro_tokens // phase.context)
        all_weights = weights.sum()
        total = 0.0
        for part, part_weights in zip(
            torch.split(ids, rows), torch.split(weights, rows), strict=True
        ):
            loss = self._nats(part, part_weights) / all_weights
            total += loss.item()
            for mixture in self.model.mixtures():
                share = plan.imbalance_weight * len(part) / len(ids)
                loss = loss + share * mixture.imbalance
            loss.backward()  # type: ignore[no-untyped-call]
        for optimiser in self.optimisers.values():
            optimiser.step()
        self.model.zero_grad()
        self.step += 1
        return total

    def _nats(self, ids: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of nats; the head is computed only where a weight is not 0."""
        counted = weights > 0
        hidden = self._hidden(ids[:, :-1])[counted]
        with self.autocast():
            logits = self.model.head(hidden)
        nats = F.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none")
        return (nats * weights[counted]).sum()

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0 or self.done

    def _evaluate(self) -> dict[str, str]:
        figures = {
            f"held_out_{source}": evaluate(
                self.model,
                self.streams.held_out[source],
                _EVALUATED_CONTEXT,
                bfloat16=self.plan.bfloat16,
                most_windows=_EVALUATED_WINDOWS,
            ).nats_per_token
            for source in ("code", "prose")
        }
        evaluated = {name: f"{value:.4f}" for name, value in figures.items()}
        if self.plan.asked:
            evaluated["right"] = "; ".join(
                f"{task} {level} {self._share_right(task, level):.2f}"
                for task, levels in self.plan.asked.items()
                for level in levels
            )
        return evaluated

    def _share_right(self, task: str, level: str) -> float:
        if self.tokenizer is None:
            raise ValueError("Items are asked in the words of a tokenizer: give one.")
        return share_right(
            self.model,
            self.tokenizer,
            task,
            level,
            number=_ASKED_ITEMS,
            bfloat16=self.plan.bfloat16,
        )

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(
            self._checkpoint, map_location=self.device, weights_only=True
        )
        if state["corpus_sha256"] != self.streams.corpus_sha256:
            raise ValueError(
                f"{self._checkpoint} was trained on another corpus: train in an empty folder."
            )
        phases = tuple(Phase(**phase) for phase in state["plan"].pop("phases"))
        shape = Shape(**state["plan"].pop("shape"))
        past = Plan(phases=phases, shape=shape, **state["plan"])
        if not self.plan.has_same_past(past, state["step"]):
            raise ValueError(
                f"{self._checkpoint} was trained by another plan: train in an empty folder."
            )
        self.step = state["step"]
        self.deterministic = state.get("deterministic", False)
        if self.step:
            self.phase, _ = self.plan.at(self.step - 1)
            self.model = self._new_model(self.phase)
            self._start_phase()
        self.model.load_state_dict(state["model"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])

    def _log(self, loss: float, evaluated: dict[str, str], seconds: float) -> None:
        phase = self.plan.phases[self.phase]
        row = {
            "step": self.step,
            "tokens": self.plan.tokens(self.step),
            "layers": phase.layers,
            "context": phase.context,
            "rate": f"{self.plan.rate(self.step - 1):.4f}",
            "loss": f"{loss:.4f}",
            "seconds": f"{seconds:.2f}",
            **evaluated,
        }
        with self._curve.open("a", newline="") as file:
            csv.DictWriter(file, CURVE_FIELDS).writerow(row)

    def _trim_curve(self) -> None:
        """Start the curve, or drop its rows past the checkpoint: they will be made again."""
        rows: list[dict[str, str]] = []
        if self._curve.exists():
            with self._curve.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]
        with self._curve.open("w", newline="") as file:
            writer = csv.DictWriter(file, CURVE_FIELDS)
            writer.writeheader()
            writer.writerows(rows)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains it."""
    in_layers = "layers" in name and not name.endswith("moe.gate.weight")
    return parameter.ndim == 2 and in_layers and not is_adapter(name)


def source_of(name: str, layers: int) -> str:
    """The name, in a model of ``layers`` layers, of what ``name`` of a deeper one starts from."""
    parts = name.split(".")
    if "layers" in parts:
        at = parts.index("layers") + 1
        parts[at] = str(int(parts[at]) % layers)
    return ".".join(parts)
