"""A directory of packed weights, by `ockham convert`."""

from __future__ import annotations

import subprocess
import sys


def convert(checkpoint: str, out: str, precision: str) -> None:
    quantization, _, group = precision.partition("-")
    command = [sys.executable, "-m", "ockham", "convert", checkpoint, out]
    command += ["--quantization", quantization]
    subprocess.run(command + (["--group-size", group] if group else []), check=True)


if __name__ == "__main__":
    convert(*sys.argv[1:])
