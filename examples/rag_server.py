"""Questions about a directory of text files, answered by a server that has both models.

    ockham serve smollm2 --embedding all-minilm --reuse prefix,chunk
    python examples/rag_server.py "How do I serve two models?"

The same as rag.py over HTTP, with OpenAI's client. The server keeps the state of passages for all
of its callers; they need neither Ockham nor a model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from openai import OpenAI

from passages import Index, Vectors, read_passages, vectors_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
SYSTEM = (
    "You answer questions from the passages that you are given, in a few sentences. If they do not "
    "say, you say so."
)
TEXTS_AT_ONCE = 64  # of a request: the server bounds the size of a body


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--documents", type=Path, default=DOCS, help="directory of text files")
    parser.add_argument("--model", default="smollm2", help="a chat model of the server")
    parser.add_argument("--embedding", default="all-minilm", help="its model of embeddings")
    parser.add_argument("--passages", type=int, default=4, help="passages for each question")
    parser.add_argument("--characters", type=int, default=800, help="of a passage, at most")
    parser.add_argument("--max-tokens", type=int, default=150)
    return parser.parse_args()


def embed(client: OpenAI, model: str, texts: list[str], side: str) -> Vectors:
    """Vectors of queries or of documents (`side`): some models want an instruction before each."""
    # Longer texts than the model takes are refused unless one asks for them to be cut.
    more = {"input_type": side, "truncate_prompt_tokens": -1}
    vectors = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        answer = client.embeddings.create(model=model, input=part, extra_body=more)
        vectors += [each.embedding for each in answer.data]
    return np.array(vectors, dtype=np.float32)


def main() -> None:
    args = arguments()
    client = OpenAI(base_url=args.url, api_key=args.api_key)
    index = Index(
        read_passages(args.documents, args.characters),
        lambda texts: embed(client, args.embedding, texts, "document"),
        vectors_file(args.documents, args.embedding),
    )
    print(f"{len(index.passages)} passages, {index.embedded} of them embedded now")

    queries = embed(client, args.embedding, args.questions, "query")
    for question, query in zip(args.questions, queries, strict=True):
        found = index.search(query, args.passages)
        # Each part of the content but the last is a chunk, whose state is taken over wherever it
        # stands. It is found again by its text, so nothing in it may depend on the question.
        chunks = [f"From {each.source}:\n{each.text}\n\n" for _, each in found]
        answer = client.chat.completions.create(
            model=args.model,
            messages=[
                {"role": "system", "content": SYSTEM},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": text} for text in (*chunks, question)],
                },
            ],
            temperature=0,
            max_tokens=args.max_tokens,
            extra_body={"reuse": "chunk"},
        )
        print(f"\n{question}")
        for cosine, each in found:
            print(f"  {cosine:.3f} {each.source}: {each.text.splitlines()[0]}")
        print((answer.choices[0].message.content or "").strip())
        assert answer.usage is not None
        bill = (answer.usage.model_extra or {})["ockham"]  # docs/api.md names its fields
        saved = [f"{each['tokens']} by {name}" for name, each in bill["saved"].items()]
        print(
            f"bill: {bill['prompt_tokens']} prompt tokens, {bill['prompt_tokens_computed']} "
            f"computed; saved: {', '.join(saved) or 'nothing'}"
        )


if __name__ == "__main__":
    main()
