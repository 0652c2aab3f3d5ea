"""`Progress`: the bar on stderr of a batch that takes a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ockham.engine.collect import Collector
from ockham.engine.messages import Delta

if TYPE_CHECKING:
    from tqdm import tqdm

_DELAY_S = 1.0


class Progress:
    """A progress bar on stderr, for batches that take longer than a second."""

    def __init__(self, prompts: int) -> None:
        from tqdm import tqdm

        self._bar: tqdm[Any] = tqdm(total=prompts, desc="Prompts", unit="prompt", delay=_DELAY_S)
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def __call__(self, collector: Collector, delta: Delta) -> None:
        self._generated_tokens += len(delta.token_ids)
        if not delta.finished:
            return
        self._prompt_tokens += len(collector.request.prompt_token_ids)
        seconds = max(1e-9, self._bar.format_dict["elapsed"])
        self._bar.set_postfix_str(
            f"input {self._prompt_tokens / seconds:.1f} tokens/s, "
            f"output {self._generated_tokens / seconds:.1f} tokens/s",
            refresh=False,
        )
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
