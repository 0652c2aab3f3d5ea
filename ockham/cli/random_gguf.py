"""Random GGUF files of real shapes, with a vocabulary: what a start from GGUF is measured with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ockham.cli.random_checkpoint import SHAPES, check_new_directory
from ockham.core.errors import ConfigError

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import numpy.typing as npt

SCALE = 1e-3
"""Of every block of 32 values, which are 4 or 8 bits times that."""


def write_random_gguf(name: str, directory: Path, seed: int = 0) -> int:
    """Write model.gguf with random weights in Q4_0, the embedding and the head in Q8_0, and a
    made-up vocabulary that splits words as Qwen2's; returns its bytes.

    Raises ConfigError if there is no such shape, or the directory is not empty.
    """
    if name not in SHAPES:
        raise ConfigError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}.")
    check_new_directory(directory)

    import gguf
    import numpy as np

    from ockham.lab.vocabulary import CONTROLS, USERS, made_up_vocabulary

    shape = SHAPES[name]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.gguf"
    writer = gguf.GGUFWriter(path, shape.model_type)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.rope_theta)
    tokens, merges = made_up_vocabulary(shape.vocab_size, seed)
    ordinary = shape.vocab_size - len(CONTROLS) - len(USERS)
    kinds = [gguf.TokenType.NORMAL] * ordinary + [gguf.TokenType.CONTROL] * len(CONTROLS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [gguf.TokenType.USER_DEFINED] * len(USERS))
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    architecture = {arch: number for number, arch in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architecture[shape.model_type], shape.layers)
    generator = np.random.Generator(np.random.SFC64(seed))
    for tensor, sizes in shape.tensors():
        stored = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        assert stored is not None, "every tensor of these shapes has a name"
        if len(sizes) == 1:
            value = 0 if tensor.endswith("bias") else 1
            writer.add_tensor(stored, np.full(sizes, value, np.float32))
            continue
        wide = tensor in ("model.embed_tokens.weight", "lm_head.weight")
        kind = gguf.GGMLQuantizationType.Q8_0 if wide else gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(stored, _blocks(kind, sizes, generator), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def _blocks(
    kind: gguf.GGMLQuantizationType, sizes: tuple[int, ...], generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Rows of blocks, each a scale in fp16 and then random bytes of values."""
    import gguf
    import numpy as np

    values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = sizes
    blocks = np.frombuffer(generator.bytes(rows * columns // values * block_bytes), np.uint8)
    blocks = blocks.reshape(rows, columns // values, block_bytes).copy()
    scale = SCALE / 16 if kind == gguf.GGMLQuantizationType.Q8_0 else SCALE
    blocks[..., :2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
