"""An ONNX model in blocks of 32 with products in int8, by onnxruntime-genai's model builder."""

from __future__ import annotations

import subprocess
import sys
import tempfile


def convert(checkpoint: str, out: str, precision: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["--input", checkpoint, "--output", out, "--cache_dir", cache]
        command += ["--precision", precision, "--execution_provider", "cpu", "--extra_options"]
        # Accuracy level 4 is the fastest; a prefill needs the logits of its last token only.
        command += ["block_size=32", "accuracy_level=4", "prune_lm_head=true"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    convert(*sys.argv[1:])
