"""Recall: for how many questions is the right file among the passages that are found?

    python examples/rag_recall.py examples/questions.jsonl

A line of the file is {"question": "...", "source": "batches.md"}. Measure this before anything
else: an answer cannot be right if its passage is not found. The table also says what shorter and
coarser vectors cost, and what a second model gains that reads question and passage together
(--ranking).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ockham import LLM
from passages import Index, Vectors, read_passages, vectors_file
from rag import DOCS, embed

CUTS = (1, 4, 10)
"""The right file is looked for among the first so many passages."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--documents", type=Path, default=DOCS, help="directory of text files")
    parser.add_argument("--embedding", default="all-minilm", help="a model of embeddings")
    parser.add_argument("--ranking", help="a model that ranks the first 20 passages anew")
    parser.add_argument("--characters", type=int, default=800, help="of a passage, at most")
    parser.add_argument("--dimensions", type=int, nargs="*", default=[192, 96])
    return parser.parse_args()


def shortened(vectors: Vectors, dimensions: int) -> Vectors:
    """The first so many values, again of length 1. Only models that were trained for it
    (Matryoshka) keep most of what they know there."""
    part = vectors[:, :dimensions]
    return np.asarray(part / np.linalg.norm(part, axis=1, keepdims=True), dtype=np.float32)


def rounded(vectors: Vectors) -> Vectors:
    """As if each value were kept in one byte, with a scale for each vector."""
    scales = np.abs(vectors).max(axis=1, keepdims=True) / 127
    return np.asarray(np.round(vectors / scales) * scales, dtype=np.float32)


def main() -> None:
    args = arguments()
    lines = args.questions.read_text("utf-8").splitlines()
    asked = [json.loads(line) for line in lines if line.strip()]
    questions = [each["question"] for each in asked]
    with LLM(args.embedding) as llm:
        index = Index(
            read_passages(args.documents, args.characters),
            lambda texts: embed(llm, texts, "document"),
            vectors_file(args.documents, args.embedding),
        )
        queries = embed(llm, questions, "query")
    names = [each.source for each in index.passages]
    print(
        f"{len(asked)} questions, {len(names)} passages of {len(set(names))} files, "
        f"{index.embedded} of them embedded now"
    )
    print("| vectors | bytes | " + " | ".join(f"recall at {cut}" for cut in CUTS) + " |")
    print("|---|--:|" + "--:|" * len(CUTS))

    def report(title: str, nbytes: int, orders: list[list[int]]) -> None:
        found = [
            sum(
                each["source"] in [names[i] for i in order[:cut]]
                for each, order in zip(asked, orders, strict=True)
            )
            for cut in CUTS
        ]
        cells = " | ".join(f"{count / len(asked):.0%}" for count in found)
        print(f"| {title} | {nbytes:,} | {cells} |")

    def orders_of(vectors: Vectors, asking: Vectors) -> list[list[int]]:
        return [[int(i) for i in np.argsort(-row)[:20]] for row in asking @ vectors.T]

    whole = orders_of(index.vectors, queries)
    report("as they are", index.vectors.nbytes, whole)
    report("one byte a value", index.vectors.size, orders_of(rounded(index.vectors), queries))
    for dimensions in args.dimensions:
        part = shortened(index.vectors, dimensions)
        orders = orders_of(part, shortened(queries, dimensions))
        report(f"first {dimensions} values", part.nbytes, orders)
    if args.ranking:
        with LLM(args.ranking) as llm:
            orders = []
            for question, order in zip(questions, whole, strict=True):
                texts = [index.passages[i].text for i in order]
                ranked = llm.rank(question, texts, truncate_prompt_tokens=-1, use_tqdm=False)
                orders.append([order[each.index] for each in ranked])
        report(f"ranked by {args.ranking}", index.vectors.nbytes, orders)


if __name__ == "__main__":
    main()
