"""Evidence for patterns that know the fixed part of a prompt: many questions about one text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

import numpy as np

from ockham.core.errors import ConfigError
from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.fidelity import fidelity_of_answers
from ockham.lab.evidence.patterns import recall_of
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.returning import Query, ask
from ockham.lab.tasks import recall
from ockham.lab.tasks.item import Item, is_answer

TOKENS = 1000
"""Of the text, about."""
QUESTIONS = 20
SHARE = 0.2
"""Of the text's blocks that a token reads with each key-value head."""
ANSWER_TOKENS = 24
SQUEEZED = (
    "Squeezed Attention (paper 72, arXiv:2411.09688): 3.1 times fewer keys and values read, and 4 "
    "times as fast kernels, with no noticeable loss of accuracy on LongBench"
)


@evidence("pattern", "squeezed")
def squeezed(bench: Bench) -> Row:
    """Words of one list, asked for one after the other: the list is reordered once."""
    engine = bench.engine(reuse="prefix")
    plain = about_one_text(engine, bench.seed, TOKENS, QUESTIONS)
    context = shared_tokens([query.tokens for query in plain])
    numbers = {"context": context, "share": SHARE, "dense_layers": 0}
    # What is generated is judged by the answers; where the question chooses too, by its tokens.
    queries, harder = (
        [
            Query(q.tokens, q.max_tokens, make_asks({"pattern/squeezed": asked}), q.score)
            for q in plain
        ]
        for asked in (numbers, {**numbers, "prompts": True})
    )
    scores: dict[bool, list[float]] = {}

    def run(approximate: bool) -> Outcome:
        found = ask(engine, queries, approximate)
        scores[approximate] = found.scores
        return Outcome([[answer] for answer in found.answers], found.ledger, found.seconds)

    row = bench.compare(
        "pattern",
        "squeezed",
        lambda: run(False),
        lambda: run(True),
        lambda outcome: outcome.ledger.state_read_bytes,
        exact=False,
        what=(
            f"{len(queries)} questions about one text of {context} tokens, beside prefix reuse, "
            "and with the reading and copying that its order takes, once; each generated token "
            f"reads {SHARE:.0%} of its blocks with each head; agreement and recall are those of "
            "questions whose tokens do so too"
        ),
        unit="bytes of keys and values read",
        claim=SQUEEZED,
    )
    row.identical = None  # it is approximate: `fidelity` says how much
    row.fidelity = fidelity_of_answers(engine, harder)
    row.compare_answers(scores[False], scores[True])
    row.recall = recall_of(bench, harder, "squeezed")
    return row


def about_one_text(engine: Engine, seed: int, tokens: int, count: int) -> list[Query]:
    """Questions for so many words of one list of about so many tokens, in no certain order. Raises
    ConfigError where the model has no tokenizer, or its context no room for them."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ConfigError("questions are asked in this measurement, and there is no tokenizer.")

    def length(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    rng = Random(f"one text {seed}")
    facts = recall.draw_facts(rng, tokens - recall.TEMPLATE_TOKENS, length)
    found = []
    for key in rng.sample(list(facts), min(count, len(facts))):
        content = f"{recall.describe_facts(facts)}\n{recall.question(key)}"
        text = tokenizer.apply_chat_template([{"role": "user", "content": content}])
        prompt = tokenizer.encode(text, add_special_tokens=False)
        item = Item(
            task="recall",
            messages=(),
            text=None,
            answer=recall.line(key, facts[key]),
            max_tokens=ANSWER_TOKENS,
            level=f"tokens={tokens}",
            fields={},
        )
        found.append(Query(prompt, ANSWER_TOKENS, {}, partial(is_answer, item)))
    longest = max(len(query.tokens) for query in found) + ANSWER_TOKENS
    if longest > engine.max_model_len:
        raise ConfigError(
            f"questions about a text take {longest} tokens, and the context of this engine has "
            f"{engine.max_model_len}; raise max_model_len."
        )
    return found


def shared_tokens(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with alike."""
    shortest = min(map(len, prompts))
    rows = np.array([prompt[:shortest] for prompt in prompts])
    differ = np.flatnonzero((rows != rows[0]).any(axis=0))
    return int(differ[0]) if len(differ) else shortest
