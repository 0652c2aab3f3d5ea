"""The target in PyTorch, frozen: its hidden states, and the logits that its head makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ockham.core.errors import ModelError

_CHECKED_TOKENS = 16
_TOLERANCE = 1e-3


@contextmanager
def fast() -> Iterator[None]:
    """Products in bf16 where the processor has instructions for them."""
    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    with torch.autocast("cpu", torch.bfloat16, enabled=supported):
        yield


def load_causal_model(path: Path) -> Any:
    """A checkpoint's model in fp32, with nothing to learn. Raises ModelError if transformers cannot
    load it."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"transformers cannot load {path}: {str(error).splitlines()[0]}") from None
    return model.eval().requires_grad_(False)


class Target:
    """A frozen model of transformers, taken apart: layers, final norm, head.

    *States* are the residual stream after a number of layers: (B, T, d).
    """

    def __init__(self, path: Path) -> None:
        """Raises ModelError if transformers cannot load it, or builds it in another way than all
        architectures that Ockham knows."""
        self.path = path
        self.model = load_causal_model(path)
        self.config = self.model.config.get_text_config()
        self.decoder = self.model.get_decoder()
        self.head: nn.Module = self.model.get_output_embeddings()
        self.layers: Sequence[nn.Module] = list(self.decoder.layers)
        self.norm: nn.Module = self.decoder.norm
        self.hidden_size = int(self.config.hidden_size)
        self.vocab_size = int(self.config.vocab_size)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self._check_parts()

    def states(self, ids: Tensor, after: Sequence[int], **inputs: Any) -> dict[int, Tensor]:
        """The states after so many layers (0: the inputs of the first) of token ids (B, T).
        `inputs` are passed on to the decoder."""
        found: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
                found[number] = given[0] if given else named["hidden_states"]

            return hook

        # The inputs of a layer, or of the norm after the last, are what the one before it made.
        hooks = [
            (self.layers[n] if n < len(self.layers) else self.norm).register_forward_pre_hook(
                keep(n), with_kwargs=True
            )
            for n in after
        ]
        try:
            self.decoder(input_ids=ids, **{"use_cache": False, **inputs})
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def last_states(self, ids: Tensor, **inputs: Any) -> Tensor:
        """The states after the last layer."""
        return self.states(ids, [len(self.layers)], **inputs)[len(self.layers)]

    def logits(self, states: Tensor) -> Tensor:
        """What the final norm and the head make of states (..., d): (..., V)."""
        logits: Tensor = self.head(self.norm(states))
        divisor = getattr(self.config, "logits_scaling", None)
        if divisor:
            logits = logits / divisor
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    @torch.no_grad()
    def _check_parts(self) -> None:
        ids = torch.arange(_CHECKED_TOKENS)[None] % self.vocab_size
        own = self.logits(self.last_states(ids))
        whole = self.model(input_ids=ids, use_cache=False).logits
        if (own - whole).abs().max() > _TOLERANCE * whole.abs().max():
            raise ModelError(
                f"{self.path}: the logits of {type(self.model).__name__} are not made by its norm "
                "and head alone, as training assumes; this architecture is not supported."
            )
