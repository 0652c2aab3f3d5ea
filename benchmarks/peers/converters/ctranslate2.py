"""CTranslate2's own converter."""

from __future__ import annotations

import sys

from ctranslate2.converters import TransformersConverter


def convert(checkpoint: str, out: str, precision: str) -> None:
    TransformersConverter(checkpoint, low_cpu_mem_usage=True).convert(out, quantization=precision)


if __name__ == "__main__":
    convert(*sys.argv[1:])
