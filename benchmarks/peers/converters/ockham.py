"""A directory of packed weights, by `ockham convert`; of GGUF the very file that llama.cpp has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers.peers import GGUF_TYPES


def convert(checkpoint: str, out: str, precision: str) -> None:
    if precision in GGUF_TYPES:
        # What is being written lies in a folder of its own, beside the models.
        name = Path(out).name.replace("ockham-", "llamacpp-", 1)
        theirs = Path(out).parent.parent / name
        if not theirs.exists():
            raise SystemExit(f"there is no {theirs}: set llamacpp-{precision} up first.")
        # Loaded once, so that its packed weights lie in Ockham's cache, as they do from then on.
        load = "import sys, ockham; ockham.LLM(sys.argv[1], skip_tokenizer_init=True)"
        subprocess.run([sys.executable, "-c", load, str(theirs)], check=True)
        Path(out).symlink_to(theirs.name)
        return
    quantization, _, group = precision.partition("-")
    command = [sys.executable, "-m", "ockham", "convert", checkpoint, out]
    command += ["--quantization", quantization]
    subprocess.run(command + (["--group-size", group] if group else []), check=True)


if __name__ == "__main__":
    convert(*sys.argv[1:])
