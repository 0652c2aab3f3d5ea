"""The loop: steps of training, and a checkpoint from which the same command goes on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ockham.core.owned_files import replacing
from ockham.training.student import OUTPUTS, TEXT, Learner
from ockham.training.windows import Windows
from ockham.training.workplace import CHECKPOINT_FILE

CHECKPOINT_S = 60.0
TOLD_S = 10.0
_MOST_WARMUP_STEPS = 50
_CLIPPED = 1.0
_STAGES = {TEXT: 0, OUTPUTS: 1}


class LoopSettings(Protocol):
    """What the loop must know of a training; see `Settings`."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def rate(self) -> float | None: ...
    @property
    def text_share(self) -> float | None: ...
    @property
    def seed(self) -> int: ...


class Loop:
    """A student in training. The rate rises linearly over the first steps, and falls linearly to
    zero over the second half."""

    def __init__(
        self,
        student: Learner,
        windows: Mapping[str, Windows],
        settings: LoopSettings,
        folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        """`windows` are the rows of each source. `folder` holds the checkpoint."""
        share = settings.text_share if settings.text_share is not None else student.text_share
        self.student, self.windows, self.settings, self.tell = student, windows, settings, tell
        self.steps = settings.steps
        self.text_steps = round(share * self.steps)
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        self.optimisers = student.optimisers(settings.rate or student.rate)
        self._rates = {
            name: [group["lr"] for group in each.param_groups]
            for name, each in self.optimisers.items()
        }
        self._checkpoint = folder / CHECKPOINT_FILE
        if self._checkpoint.exists():
            self._load()

    def run(self) -> None:
        """Make the steps that are left. An interrupt is obeyed after the step, once that is saved;
        a second one at once."""
        saved = told = began = time.monotonic()
        before, first = self.seconds, self.step
        with _interrupts() as interrupted:
            while self.step < self.steps:
                self.losses.append(self._make_step())
                now = time.monotonic()
                self.seconds = before + now - began
                if now - told > TOLD_S or self.step == self.steps:
                    self._tell((now - began) / (self.step - first))
                    told = now
                if now - saved > CHECKPOINT_S or self.step == self.steps or interrupted():
                    self._save()
                    saved = now
                if interrupted():
                    self.tell(
                        f"interrupted after step {self.step} of {self.steps}, which is saved; the "
                        "same command goes on from there"
                    )
                    raise KeyboardInterrupt

    @property
    def read(self) -> int:
        """Tokens that were read."""
        return self.step * self.settings.batch_tokens

    def source(self, step: int) -> str:
        """What a step reads."""
        return TEXT if step < self.text_steps else OUTPUTS

    def rate(self, step: int) -> float:
        """The factor of the learning rates at a step."""
        warmup = min(_MOST_WARMUP_STEPS, max(1, self.steps // 20))
        return min(1.0, (step + 1) / warmup, 2 * (self.steps - step) / self.steps)

    def _make_step(self) -> float:
        source = self.source(self.step)
        windows, first = self.windows[source], 0 if source == TEXT else self.text_steps
        rows = max(1, self.settings.batch_tokens // windows.context)
        ids = torch.from_numpy(windows.batch(self.step - first, rows))
        rng = np.random.default_rng([self.settings.seed, _STAGES[source], self.step])
        for name, optimiser in self.optimisers.items():
            for group, rate in zip(optimiser.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * self.rate(self.step)
        loss = self.student.loss(ids, rng, source)
        loss.backward()  # type: ignore[no-untyped-call]
        learned = [p for p in self.student.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(learned, _CLIPPED)
        for optimiser in self.optimisers.values():
            optimiser.step()
        self.student.moved(self.step, self.steps)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()
        self.step += 1
        return loss.item()

    def _tell(self, step_s: float) -> None:
        recent = self.losses[-max(1, self.steps // 50) :]
        left = (self.steps - self.step) * step_s
        speed = self.settings.batch_tokens / step_s
        self.tell(
            f"step {self.step} of {self.steps} ({self.source(self.step - 1)}): loss "
            f"{sum(recent) / len(recent):.3f}, {speed:,.0f} tokens/s, {left / 60:.1f} minutes left"
        )

    def _save(self) -> None:
        """The old checkpoint stays whole until the new one is."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "student": self.student.state_dict(),
            **{name: each.state_dict() for name, each in self.optimisers.items()},
        }
        with replacing(self._checkpoint) as file:
            torch.save(state, file)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self._checkpoint, weights_only=True)
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        self.student.load_state_dict(state["student"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])
        self.tell(f"going on from step {self.step} of {self.steps}")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Notes an interrupt instead of raising it, and lets a second one through. Signals reach the
    main thread alone; in others there is nothing to note."""
    came = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield came.is_set
        return

    def note(number: int, frame: Any) -> None:
        came.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)
