r"""Questions about a directory of text files, answered from its passages, in one process.

    python examples/rag.py "What is in the KV store after a restart?" \
        "Which files does the store write?"

Embeds the passages (once: the vectors are kept beside the documents), finds the best for each
question, and lets a chat model answer from them. The state of a passage that was in an earlier
prompt is taken over, wherever it stands in the next (chunk reuse): the bill says what that saved.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ockham import LLM, Ledger, SamplingParams
from passages import Index, Vectors, read_passages, vectors_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
SYSTEM = (
    "You answer questions from the passages that you are given, in a few sentences. If they do not "
    "say, you say so."
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--documents", type=Path, default=DOCS, help="directory of text files")
    parser.add_argument("--model", default="smollm2", help="a chat model")
    parser.add_argument("--embedding", default="all-minilm", help="a model of embeddings")
    parser.add_argument("--passages", type=int, default=4, help="passages for each question")
    parser.add_argument("--characters", type=int, default=800, help="of a passage, at most")
    parser.add_argument("--max-tokens", type=int, default=150)
    parser.add_argument("--exact", action="store_true", help="without chunk reuse")
    return parser.parse_args()


def embed(llm: LLM, texts: list[str], side: str) -> Vectors:
    """Vectors of queries or of documents (`side`): some models want an instruction before each."""
    # Longer texts than the model takes are refused unless one asks for them to be cut.
    outputs = llm.embed(texts, input_type=side, truncate_prompt_tokens=-1, use_tqdm=False)
    return np.stack([each.outputs.embedding for each in outputs])


def bill(ledger: Ledger) -> str:
    saved = [f"{each.tokens} by {name}" for name, each in ledger.saved.items() if each.tokens]
    return (
        f"{ledger.prompt_tokens} prompt tokens, {ledger.prompt_tokens_computed} computed, "
        f"{ledger.prompt_tokens_reused} reused; saved: {', '.join(saved) or 'nothing'}; "
        f"{ledger.prefill_s:.2f} s to read, {ledger.decode_s:.2f} s to write"
    )


def main() -> None:
    args = arguments()
    with LLM(args.embedding) as embedder:
        index = Index(
            read_passages(args.documents, args.characters),
            lambda texts: embed(embedder, texts, "document"),
            vectors_file(args.documents, args.embedding),
        )
        queries = embed(embedder, args.questions, "query")
    print(f"{len(index.passages)} passages, {index.embedded} of them embedded now")

    # Chunk reuse changes answers a little. It is off unless the engine is started with it and the
    # request asks for it.
    with LLM(args.model, reuse="prefix,chunk") as llm:
        for question, query in zip(args.questions, queries, strict=True):
            found = index.search(query, args.passages)
            # Each part of the content but the last is a chunk. A chunk is found again by its
            # text, so nothing in it may depend on the question, such as a number or a score.
            chunks = [f"From {each.source}:\n{each.text}\n\n" for _, each in found]
            messages: list[dict[str, Any]] = [
                {"role": "system", "content": SYSTEM},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": text} for text in (*chunks, question)],
                },
            ]
            params = SamplingParams(temperature=0, max_tokens=args.max_tokens)
            reuse = None if args.exact else "chunk"
            [output] = llm.chat(messages, params, reuse=reuse, use_tqdm=False)
            print(f"\n{question}")
            for cosine, each in found:
                print(f"  {cosine:.3f} {each.source}: {each.text.splitlines()[0]}")
            print(output.outputs[0].text.strip())
            print(f"bill: {bill(output.ledger)}")


if __name__ == "__main__":
    main()
