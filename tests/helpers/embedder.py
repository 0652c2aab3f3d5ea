"""The built-in model as a model of embeddings, as sentence-transformers would have written it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.helpers.tiny import LAB

PROMPTS = {"query": "find: ", "document": "text: "}


def embedder(directory: Path, how: str = "mean", **config: Any) -> Path:
    """Write it; `config` are further settings of config_sentence_transformers.json."""
    shutil.copytree(LAB, directory)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"a.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": how}))
    told = {"prompts": PROMPTS, "similarity_fn_name": "cosine", **config}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(told))
    return directory
