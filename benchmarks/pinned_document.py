"""Questions about one long document with `squeezed`: bytes that they read, and tokens that stay.

    python -m benchmarks.pinned_document --share 0.4 --dense-layers 2

The document is made of Python's own help topics, and the model is SmolLM2 (or another) with fp32
weights, because activations in 8 bits turn another order of sums into other tokens. *Agreement* is
of the likeliest tokens along the answers that the full cache gives; there the questions' tokens
choose too. Bytes are those of the questions that were answered freely, by the ledger.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics
from typing import Any

from ockham import LLM, SamplingParams
from ockham.core.outputs import RequestOutput
from ockham.core.registry import make_asks
from ockham.engine.messages import Request
from ockham.lab.running import drive

FORMS = (
    "What is said about {} in this text?",
    "Summarise the section on {}.",
    "Explain {} to a beginner.",
    "Give an example of {}.",
    "Which rule does the text state for {}?",
)
ANSWER_TOKENS, TOGETHER = 24, 5


def likeliest(output: RequestOutput, start: int) -> list[int]:
    """The likeliest token at each place of a prompt from `start` on."""
    rows = (output.prompt_logprobs or [])[start:]
    return [next(t for t, each in row.items() if each.rank == 1) for row in rows if row]


def main() -> None:
    """Ask the questions with and without, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=7808, help="of the document")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--dense-layers", type=int, default=2)
    given = parser.parse_args()
    llm = LLM(
        given.model,
        quantization="fp32",
        max_model_len=given.tokens + 384,
        speculative_config="none",
        kv_cache_memory_bytes=1 << 30,
    )
    tokenizer = llm.get_tokenizer()
    text, names = "<|im_start|>system\nYou answer questions about this text.\n\n", []
    for name, topic in topics.items():
        if 400 <= len(topic) <= 6000 and len(tokenizer.encode(text)) < given.tokens:
            names.append(name)
            text += f"## {name}\n{topic}\n\n"
    document = tokenizer.encode(text)[: given.tokens]
    asked = [
        FORMS[i // len(names) % len(FORMS)].format(names[i % len(names)])
        for i in range(given.questions)
    ]
    prompts = [
        document
        + tokenizer.encode(
            f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        for question in asked
    ]
    ask = {"context": len(document), "share": given.share, "dense_layers": given.dense_layers}

    def answers(**extra: Any) -> list[RequestOutput]:
        params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, **extra)
        return llm.generate([{"prompt_token_ids": each} for each in prompts], params)

    def along(way: str, asks: dict[str, Any]) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        for first in range(0, len(prompts), TOGETHER):
            some = range(first, min(first + TOGETHER, len(prompts)))
            requests = [
                Request(
                    request_id=f"{way} {i}",
                    prompt_token_ids=prompts[i] + list(full[i].outputs[0].token_ids),
                    params=params,
                    score_from=len(prompts[i]),
                    asks=make_asks(asks),
                )
                for i in some
            ]

            def keep(output: RequestOutput) -> None:
                number = int(output.request_id.split()[-1])
                found[number] = likeliest(output, len(prompts[number]))

            drive(llm.engine, requests, keep)
        return [found[i] for i in range(len(prompts))]

    answers()  # the document is read, and held
    full, squeezed = answers(), answers(squeezed=ask)
    without, with_ = (
        along("full", {}),
        along("part", {"pattern/squeezed": {**ask, "prompts": True}}),
    )
    pairs = [
        (a, b)
        for one, other in zip(without, with_, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    equal = sum(
        list(a.outputs[0].token_ids) == list(b.outputs[0].token_ids)
        for a, b in zip(full, squeezed, strict=True)
    )
    ledgers = [each.ledger for each in squeezed if each.ledger is not None]
    read = sum(each.state_read_bytes for each in ledgers)
    saved = sum(each.saved["squeezed"].bytes for each in ledgers)
    print(
        f"{len(prompts)} questions about {len(document)} tokens: {(read + saved) / read:.2f} times "
        f"fewer bytes of keys and values read (the order found included); "
        f"{sum(a == b for a, b in pairs) / len(pairs):.1%} of {len(pairs)} likeliest tokens agree; "
        f"{equal} answers of {ANSWER_TOKENS} tokens are the same"
    )


if __name__ == "__main__":
    main()
