"""GGUF of the architecture `bert`, by the `gguf` package, and llama.cpp's own quantiser."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import llama_cpp as ll
import numpy as np
from safetensors.numpy import load_file

LEFT_OUT = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
"""The pooler is for classifiers."""
WORD_BEGIN = "\u2581"
"""Before what begins a word, where WordPiece marks what goes on with one instead."""


def convert(checkpoint: str, out: str, precision: str) -> None:
    if precision == "F32":
        write_f32(Path(checkpoint), out)
        return
    source = f"{out}.f32"
    write_f32(Path(checkpoint), source)
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{precision}")
    params.nthread = 2
    status = ll.llama_model_quantize(source.encode(), out.encode(), params)
    Path(source).unlink()
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}.")


def write_f32(checkpoint: Path, out: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(out, "bert")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    write_vocabulary(writer, checkpoint, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    for name, values in load_file(checkpoint / "model.safetensors").items():
        if name in LEFT_OUT:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"{name} has no name in GGUF.")
        writer.add_tensor(target, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, config: dict) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    special = {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"]
    tokens = [""] * len(ids)
    for token, index in ids.items():
        begins = token not in special and not token.startswith("##")
        tokens[index] = WORD_BEGIN + token if begins else token.removeprefix("##")
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for index in special.values():
        kinds[index] = gguf.TokenType.CONTROL
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_mask_token_id(special["[MASK]"])
    writer.add_bos_token_id(special["[CLS]"])


if __name__ == "__main__":
    convert(*sys.argv[1:])
