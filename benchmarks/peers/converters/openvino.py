"""OpenVINO's IR with weights compressed by NNCF, through optimum-intel; int4 in groups of 128.

At a ratio of 1.0 every layer gets 4 bits; NNCF keeps the embedding and the head at 8.
"""

from __future__ import annotations

import sys

from optimum.commands.optimum_cli import main

PRECISIONS = {
    "int8": ["--weight-format", "int8"],
    "fp16": ["--weight-format", "fp16"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"],
}


def convert(checkpoint: str, out: str, precision: str) -> None:
    task = ["--task", "text-generation-with-past"]
    sys.argv = ["optimum-cli", "export", "openvino", "--model", checkpoint, *task]
    sys.argv += [*PRECISIONS[precision], out]
    main()


if __name__ == "__main__":
    convert(*sys.argv[1:])
