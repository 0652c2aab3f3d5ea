"""transformers reads the checkpoint as it is."""

from __future__ import annotations

import sys
from pathlib import Path


def convert(checkpoint: str, out: str, precision: str) -> None:
    Path(out).symlink_to(checkpoint)


if __name__ == "__main__":
    convert(*sys.argv[1:])
