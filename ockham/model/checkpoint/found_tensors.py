"""The tensors of a small file that a training wrote, each to be taken once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.model.files.safetensors import DTYPES, SafetensorsFile


class FoundTensors:
    """The tensors of a file, each to be taken once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = SafetensorsFile(path)
        self.tensors: dict[str, Floats] = {}
        try:
            for name, tensor in file.tensors.items():
                if tensor.dtype not in DTYPES:
                    raise ModelError(
                        f"tensor {name!r} of {path} has the dtype {tensor.dtype}; supported are "
                        f"{', '.join(DTYPES)}."
                    )
                buffer = bytearray(tensor.nbytes)
                file.read_into(memoryview(buffer), tensor.start, f"tensor {name!r}")
                values = np.frombuffer(buffer, DTYPES[tensor.dtype]).reshape(tensor.shape)
                self.tensors[name] = values.astype(np.float32)
        finally:
            file.close()

    def take(self, name: str, shape: tuple[int, ...]) -> Floats:
        value = self.tensors.pop(name, None)
        if value is None:
            raise ModelError(f"{self.path} has no tensor {name!r}.")
        if value.shape != shape:
            raise ModelError(
                f"tensor {name!r} of {self.path} has the shape {list(value.shape)}, where "
                f"{list(shape)} is expected."
            )
        if not np.isfinite(value).all():
            raise ModelError(f"tensor {name!r} of {self.path} holds what is no finite number.")
        return value

    def check_all_used(self) -> None:
        if self.tensors:
            raise ModelError(f"{self.path} holds {min(self.tensors)!r}, which has no meaning here.")
