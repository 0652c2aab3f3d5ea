"""GGUF, by the `gguf` package, and llama.cpp's own quantiser."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp as ll
import numpy as np

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(checkpoint: str, out: str, precision: str) -> None:
    if precision == "BF16":
        write_bf16(Path(checkpoint), out)
        return
    source = f"{out}.bf16"
    write_bf16(Path(checkpoint), source)
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{precision}")
    params.nthread = 2
    status = ll.llama_model_quantize(source.encode(), out.encode(), params)
    Path(source).unlink()
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}.")


def write_bf16(checkpoint: Path, out: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")
    for name, bits in tensors(checkpoint / "model.safetensors"):
        target = NAMES.get(name) or layer_name(name)
        if bits.ndim == 1:  # norms stay in fp32, as llama.cpp's own converter has them
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            bits = interleaved(bits, config[heads])
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(target, bits.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def layer_name(name: str) -> str:
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(bits: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs beside each other, as GGUF's llama architecture has them; Hugging Face has the
    first of all pairs in the first half of a head, the second ones in the other."""
    rows, inputs = bits.shape
    halves = bits.reshape(heads, 2, rows // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, inputs))


def tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and bf16 bits (uint16) of all tensors of a safetensors file."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    data = np.memmap(path, np.uint8, "r", 8 + header_bytes)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{name} is stored in {entry['dtype']}; this expects BF16.")
        start, end = entry["data_offsets"]
        yield name, data[start:end].view(np.uint16).reshape(entry["shape"])


if __name__ == "__main__":
    convert(*sys.argv[1:])
