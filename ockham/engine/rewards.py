"""Reward models: sequence classifiers that score what branches of searches have said.

Each is an engine of its own, in a thread beside the steps of the engine that generates. Its state
is reused from text to text: of a branch that goes on, only what is new is computed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, OckhamError, TaskFailed
from ockham.core.outputs import ClassificationOutput
from ockham.core.pooling import PoolingParams
from ockham.core.sampling_params import SamplingParams
from ockham.engine.collect import Collector
from ockham.engine.messages import Request
from ockham.engine.named import named
from ockham.text.tokenizer import Tokenizer

TOGETHER = 16
"""Texts that are scored at once."""
STATE_BYTES = 1 << 30
"""The most that a reward model's state takes."""

log = logging.getLogger("ockham.engine")

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A text to score, after a prompt."""

    prompt: Ints
    messages: Messages | None
    text: str
    found: Future[float]


class RewardModel:
    """A model with one output, whose sigmoid is the score of a text.

    It reads a chat by its own chat template, the text as the assistant's last message; without a
    template, or where the prompt is no chat, it reads prompt and text as one. Text that it cannot
    read (it is too long, say) has no score: the future raises TaskFailed.
    """

    def __init__(self, name: str, model: str, tokenizer: Tokenizer, threads: int | None) -> None:
        """`tokenizer` is that of the prompts. Raises ConfigError for a model that gives no score,
        and as `Engine` does."""
        from ockham.engine.engine import Engine  # which has reward models itself

        self._name, self._prompts = name, tokenizer
        config = EngineConfig(
            model=model,
            threads=threads,
            max_num_seqs=TOGETHER,
            kv_cache_memory_bytes=STATE_BYTES,
            speculative_config="none",
        )
        try:
            self._engine = Engine(config)
        except OckhamError as error:
            raise ConfigError(f"the reward model {name!r}: {error}") from None
        pooler, own = self._engine.pooler, self._engine.tokenizer
        if pooler is None or own is None or pooler.tasks[0] == "embed" or pooler.width != 1:
            self._engine.close()
            raise ConfigError(
                f"the reward model {name!r}: {model} gives no score; name a sequence classifier "
                "with one output (num_labels 1) and a tokenizer."
            )
        self._tokenizer = own
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._running: dict[str, tuple[Collector, Future[float]]] = {}
        self._number, self._closed = 0, False
        self._thread: threading.Thread | None = None

    def judging(self, messages: Messages | None) -> Judging:
        """A judge of what is said after a prompt, which was made of `messages`, if it is a chat."""
        return Judging(self, messages)

    def ask(self, asked: _Asked) -> None:
        """Score a text, later."""
        if self._thread is None:  # in the process that steps, which may be a fork of the first
            self._thread = threading.Thread(target=self._work, name="ockham-reward", daemon=True)
            self._thread.start()
        self._asked.put(asked)

    def close(self) -> None:
        """Score nothing any more."""
        self._closed = True
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join()
        self._engine.close()

    # -- in the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            while not self._running or not self._asked.empty():
                asked = self._asked.get()
                if asked is None:
                    return self._end()
                self._begin(asked)
            try:
                self._step()
            except Exception as error:  # of the model: no text of this moment has a score
                log.exception("The reward model %r failed.", self._name)
                for request_id, (_, found) in list(self._running.items()):
                    self._engine.abort(request_id)
                    found.set_exception(self._failed(error))
                self._running.clear()

    def _begin(self, asked: _Asked) -> None:
        if not asked.found.set_running_or_notify_cancel():
            return  # nobody waits for it
        self._number += 1
        try:
            request = Request(
                request_id=str(self._number),
                prompt_token_ids=self._read(asked),
                params=SamplingParams(),
                pooling=PoolingParams(task="classify"),
            )
            self._engine.take(request)
        except Exception as error:
            asked.found.set_exception(self._failed(error))
            return
        self._running[request.request_id] = Collector(request), asked.found

    def _step(self) -> None:
        for delta in self._engine.step():
            collector, found = self._running[delta.request_id]
            collector.add(delta)
            if not collector.finished:
                continue
            del self._running[delta.request_id]
            try:
                output = collector.pooled().outputs
                assert isinstance(output, ClassificationOutput), "as it was asked for"
                score = float(np.asarray(output.probs)[0])
                if not 0.0 <= score <= 1.0:
                    raise ValueError(f"the score is {score}")
                found.set_result(score)
            except Exception as error:
                found.set_exception(self._failed(error))

    def _read(self, asked: _Asked) -> list[int]:
        """The tokens that are scored."""
        own = self._tokenizer
        if asked.messages is not None and own.has_chat_template:
            said = {"role": "assistant", "content": asked.text}
            text = own.apply_chat_template([*asked.messages, said], add_generation_prompt=False)
            return own.encode(text, add_special_tokens=False)
        text = self._prompts.decode(asked.prompt.tolist()) + asked.text
        return own.encode(text, add_special_tokens=True)

    def _end(self) -> None:
        stopped = TaskFailed(f"the reward model {self._name!r} was stopped.", "stopped")
        for request_id, (_, found) in self._running.items():
            self._engine.abort(request_id)
            found.set_exception(stopped)
        self._running.clear()
        while not self._asked.empty():
            asked = self._asked.get()
            if asked is not None and asked.found.set_running_or_notify_cancel():
                asked.found.set_exception(stopped)

    def _failed(self, error: Exception) -> TaskFailed:
        said = str(error) if isinstance(error, OckhamError) else type(error).__name__
        return TaskFailed(f"the reward model {self._name!r}: {said}", type(error).__name__)


@dataclass(frozen=True, slots=True)
class Judging:
    """Scores the texts of one request. See `core.seams.Judge`."""

    model: RewardModel
    messages: Messages | None

    def submit(self, prompt: Ints, text: str) -> Future[float]:
        """See `core.seams.Judge`."""
        found: Future[float] = Future()
        self.model.ask(_Asked(prompt, self.messages, text, found))
        return found


def rewards_of(
    given: str | Mapping[str, str] | None, tokenizer: Tokenizer | None, threads: int | None
) -> dict[str, RewardModel]:
    """The reward models of an engine. Raises ConfigError for one that cannot be loaded or gives no
    score, or if there is no tokenizer."""
    if not given:
        return {}
    if tokenizer is None:
        raise ConfigError("reward models read text: they need a tokenizer.")
    models = named("reward", "MODEL", given).items()
    return {name: RewardModel(name, model, tokenizer, threads) for name, model in models}
