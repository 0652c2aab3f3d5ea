"""What `ockham train probe` writes: a directory with `probe.json`, which says of what it is a
probe, and `probe.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np

from ockham.core.errors import ModelError
from ockham.core.probe import Probe, ProbeFacts
from ockham.model.checkpoint.found_tensors import FoundTensors
from ockham.model.files.safetensors import write_floats
from ockham.model.files.untrusted import read_object

CONFIG_FILE, WEIGHTS_FILE = "probe.json", "probe.safetensors"
VERSION = 1


def write_probe(directory: Path, probe: Probe) -> None:
    """Write a probe into a directory that is there."""
    facts = msgspec.structs.asdict(probe.facts)
    config = {"version": VERSION, "hidden_size": len(probe.weight), **facts}
    text = json.dumps(config, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    tensors = {"weight": probe.weight, "bias": np.array([probe.bias], np.float32)}
    write_floats(directory / WEIGHTS_FILE, tensors)


def read_probe(directory: Path) -> Probe:
    """Raises ModelError if a file is missing or damaged, of another version, or if a tensor is
    missing or has another shape or other values than there can be."""
    path = directory / CONFIG_FILE
    try:
        config = read_object(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); name a directory that `ockham train probe` "
            "wrote."
        ) from None
    if config.pop("version", None) != VERSION:
        raise ModelError(
            f"{path} is not of version {VERSION}, which this Ockham reads: train it anew."
        )
    width = config.pop("hidden_size", None)
    if type(width) is not int or width < 1:
        raise ModelError(f"hidden_size of {path} is no size, but {width!r}.")
    try:
        facts = msgspec.convert(config, ProbeFacts)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path} says nothing of a probe ({error}).") from None
    found = FoundTensors(directory / WEIGHTS_FILE)
    weight, bias = found.take("weight", (width,)), found.take("bias", (1,))
    found.check_all_used()
    return Probe(facts, weight, float(bias[0]))
