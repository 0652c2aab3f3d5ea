"""The checkpoint that all engines get: random weights in the shape of TinyLlama (1.1B, bf16)."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers.workloads import VOCABULARY
from ockham.cli.random_checkpoint import write_random_checkpoint

CONTEXT_TOKENS = 4096
"""TinyLlama's own 2,048 would leave no room to generate after a prompt of that length."""
SPECIAL = ("<unk>", "<s>", "</s>")


def make_checkpoint(directory: Path) -> None:
    """Write the checkpoint, or leave a whole one as it is.

    It gets a tokenizer of made-up words, because some converters ask for one; no text is ever
    given to an engine.
    """
    whole = directory / "tokenizer_config.json"
    if whole.exists():
        return
    write_random_checkpoint("tinyllama", directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"max_position_embeddings": CONTEXT_TOKENS, "bos_token_id": 1, "eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _write_tokenizer(directory / "tokenizer.json")
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    whole.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"word{number}" for number in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(path))
