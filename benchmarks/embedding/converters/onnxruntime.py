"""An ONNX model, fused by ONNX Runtime's optimiser for BERT; int8 by its dynamic quantisation.

Dynamic: the weights are stored in int8 with a scale for each output, the inputs of products are
quantised while the model runs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from transformers import AutoModel, AutoTokenizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"


class Encoder(torch.nn.Module):
    """The model as a function of three arrays."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        # The optimiser knows the pattern of the eager attention.
        self.model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager")

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        return self.model(
            input_ids=ids, attention_mask=mask, token_type_ids=types
        ).last_hidden_state


def convert(checkpoint: str, out: str, precision: str) -> None:
    encoder = Encoder(checkpoint).eval()
    config = encoder.model.config
    example = AutoTokenizer.from_pretrained(checkpoint)(
        ["a few words", "some more words than these"], padding=True, return_tensors="pt"
    )
    target = Path(out)
    target.mkdir()
    shutil.copy(Path(checkpoint) / "tokenizer.json", target)
    with tempfile.TemporaryDirectory() as work:
        exported, fused = f"{work}/exported.onnx", f"{work}/fused.onnx"
        torch.onnx.export(
            encoder,
            tuple(example[name] for name in INPUTS),
            exported,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*INPUTS, OUTPUT)},
            opset_version=17,
            dynamo=False,
        )
        model = optimizer.optimize_model(
            exported,
            model_type="bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
            opt_level=0,
        )
        fusions = model.get_fused_operator_statistics()
        if fusions["Attention"] != config.num_hidden_layers:
            raise RuntimeError(f"the optimiser did not fuse all layers: {fusions}")
        if precision == "fp32":
            model.save_model_to_file(str(target / "model.onnx"))
            return
        model.save_model_to_file(fused)
        quantize_dynamic(
            fused,
            target / "model.onnx",
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


if __name__ == "__main__":
    convert(*sys.argv[1:])
