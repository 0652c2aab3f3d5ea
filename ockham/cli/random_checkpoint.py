"""Random checkpoints of real shapes: speed can be measured without a download, quality cannot."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

STANDARD_DEVIATION = 0.02
BLOCK_VALUES = 1 << 22
"""Values drawn at a time, so that writing never holds a whole matrix."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder of the Llama family."""

    architecture: str
    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tied: bool
    rope_theta: float
    qkv_bias: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    def config(self) -> dict[str, Any]:
        """config.json. There is no end-of-sequence token: random text should not end."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tied,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor."""
        hidden, inner = self.hidden_size, self.intermediate_size
        keys = self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (hidden,)
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys)):
                yield f"{prefix}self_attn.{name}.weight", (rows, hidden)
                if self.qkv_bias:
                    yield f"{prefix}self_attn.{name}.bias", (rows,)
            yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
            yield prefix + "mlp.gate_proj.weight", (inner, hidden)
            yield prefix + "mlp.up_proj.weight", (inner, hidden)
            yield prefix + "mlp.down_proj.weight", (hidden, inner)
        yield "model.norm.weight", (hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab_size, hidden)


SHAPES = {
    "tiny": Shape("LlamaForCausalLM", "llama", 64, 2, 4, 2, 128, 512, 512, True, 1e4, False),
    "tinyllama": Shape(
        "LlamaForCausalLM", "llama", 2048, 22, 32, 4, 5632, 32000, 2048, False, 1e4, False
    ),
    "llama-160m": Shape(
        "LlamaForCausalLM", "llama", 768, 12, 12, 12, 3072, 32000, 2048, False, 1e4, False
    ),
    "draft-110m": Shape(
        "LlamaForCausalLM", "llama", 768, 10, 12, 4, 2048, 32000, 2048, False, 1e4, False
    ),
    "qwen2-0.5b": Shape(
        "Qwen2ForCausalLM", "qwen2", 896, 24, 14, 2, 4864, 151936, 32768, True, 1e6, True
    ),
    "qwen2-1b": Shape(
        "Qwen2ForCausalLM", "qwen2", 1536, 18, 12, 2, 8960, 151936, 32768, True, 1e6, True
    ),
    "llama3-8b-layer": Shape(
        "LlamaForCausalLM", "llama", 4096, 1, 32, 8, 14336, 2048, 8192, False, 5e5, False
    ),
}
"""Name -> shape, as published in the models' config.json ("tiny" is for trying this out,
"draft-110m" is what a drafter of a tenth of "tinyllama" looks like, and "qwen2-1b" is Qwen2-1.5B
with 18 of its 28 layers: a billion weights with a large vocabulary; "llama3-8b-layer" is one layer
of Llama 3 8B with a small vocabulary, for timing products of its matrices)."""


def write_random_checkpoint(name: str, directory: Path, seed: int = 0) -> int:
    """Write config.json and model.safetensors in bf16, without a tokenizer; returns its bytes.

    Matrices are normal with a standard deviation of 0.02, norms are 1 and biases 0, drawn from
    `seed` alone. Raises ConfigError if there is no such shape, or the directory is not empty.
    """
    if name not in SHAPES:
        raise ConfigError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}.")
    check_new_directory(directory)

    import numpy as np

    shape = SHAPES[name]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor, sizes in shape.tensors():
        end = offset + 2 * math.prod(sizes)
        header[tensor] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "config.json").open("x", encoding="utf-8") as config:
        config.write(json.dumps(shape.config(), indent=2) + "\n")
    generator = np.random.Generator(np.random.SFC64(seed))
    with (directory / "model.safetensors").open("xb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor, sizes in shape.tensors():
            for block in _blocks(tensor, math.prod(sizes), generator):
                file.write(block.tobytes())
    return offset


def check_new_directory(directory: Path) -> None:
    """Raise ConfigError unless a directory is empty or not there."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty directory; name another.")


def _blocks(
    tensor: str, values: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.uint16]]:
    """A tensor's values as the bits of bf16: the upper half of those of fp32."""
    import numpy as np

    for start in range(0, values, BLOCK_VALUES):
        count = min(BLOCK_VALUES, values - start)
        if tensor.endswith("norm.weight"):
            block = np.ones(count, np.float32)
        elif tensor.endswith("bias"):
            block = np.zeros(count, np.float32)
        else:
            block = generator.standard_normal(count, np.float32)
            block *= STANDARD_DEVIATION
        yield (block.view(np.uint32) >> 16).astype("<u2")
