"""A checkpoint of TinyLlama's size that says what Ockham's built-in model says.

Drafts are accepted as often as a text foretells itself, and a model of random weights says nothing
that does. So the weights of the built-in model (7 million parameters) are laid into the shape of
TinyLlama (1.1 billion), and all that is left over is zero: more layers that add nothing, wider
states of which the rest stays zero, more heads whose outputs nobody reads. It answers as the small
one does and takes the time of the large one, on every engine.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.cli.random_checkpoint import SHAPES
from ockham.model.files.safetensors import Checkpoint
from ockham.model.hub import resolve

SHAPE = SHAPES["tinyllama"]
Array = npt.NDArray[np.float32]


def make_answering_checkpoint(directory: Path, other: Path) -> None:
    """Write it, or leave a whole one as it is. What is no weight is that of the `other` checkpoint,
    which has the same shape."""
    whole = directory / "tokenizer_config.json"
    if whole.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    lab = resolve("lab")
    small = json.loads((lab / "config.json").read_text())
    config = json.loads((other / "config.json").read_text())
    # The mean square of a state is over all of its values, most of which are zero.
    config["rms_norm_eps"] = small["rms_norm_eps"] * small["hidden_size"] / SHAPE.hidden_size
    config["rope_theta"] = small["rope_theta"]
    _write_weights(directory / "model.safetensors", lab, small)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(other / "tokenizer.json", directory / "tokenizer.json")
    shutil.copyfile(other / whole.name, whole)


def _write_weights(path: Path, lab: Path, small: dict[str, Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, sizes in SHAPE.tensors():
        end = offset + 2 * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    checkpoint = Checkpoint(lab)
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for name, sizes in SHAPE.tensors():
                file.write(_bf16(_weight(checkpoint, name, sizes, small)).tobytes())
    finally:
        checkpoint.close()


def _weight(
    checkpoint: Checkpoint, name: str, sizes: tuple[int, ...], small: dict[str, Any]
) -> Array:
    """The small model's weight of this name within one of these sizes."""
    layer = int(name.split(".")[2]) if ".layers." in name else 0
    weight: Array = np.zeros(sizes, np.float32)
    if layer >= small["num_hidden_layers"]:
        return weight
    source = "model.embed_tokens.weight" if name == "lm_head.weight" else name
    values = np.asarray(checkpoint.read(checkpoint.tensors[source]), np.float32)
    if name.endswith("norm.weight"):
        weight[: len(values)] = values / math.sqrt(SHAPE.hidden_size / small["hidden_size"])
    elif name.endswith("q_proj.weight"):
        weight[_query_rows(small), : values.shape[1]] = values
    elif name.endswith("o_proj.weight"):
        weight[: values.shape[0], _query_rows(small)] = values
    else:
        weight[: values.shape[0], : values.shape[1]] = values
    if name == "lm_head.weight":  # tokens that it does not have are as unlikely as padding
        weight[len(values) :, : values.shape[1]] = values[small["pad_token_id"]]
    return weight


def _query_rows(small: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Where the small model's queries stand: heads that read the same keys are beside each other,
    and there are more of them for each."""
    head = SHAPE.head_dim
    assert small["head_dim"] == head, "both models have heads of one width"
    each = small["num_attention_heads"] // small["num_key_value_heads"]
    wide = SHAPE.heads // SHAPE.kv_heads
    heads = [wide * (h // each) + h % each for h in range(small["num_attention_heads"])]
    return np.concatenate([np.arange(h * head, (h + 1) * head) for h in heads])


def _bf16(values: Array) -> npt.NDArray[np.uint16]:
    """The bits, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)
