"""Evidence for patterns whose rows choose together while a prompt is read."""

from __future__ import annotations

import time
from random import Random

from ockham.core.errors import ConfigError
from ockham.core.ledger import Ledger
from ockham.core.registry import make, make_ask, make_asks
from ockham.core.seams import AttentionGroup
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.engine.visiting import put_choices
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.patterns import asked, attention_flops, attention_of, recall_of
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.returning import Query, ask
from ockham.lab.tasks.english import write_report

XATTENTION = (
    "XAttention (arXiv:2503.16428): attention of prompts up to 13.5 times as fast, with an "
    "accuracy comparable to full attention"
)
THRESHOLD, LAST = 0.9, 64


@evidence("pattern", "xattention")
def xattention(bench: Bench) -> Row:
    """One key's word among hundreds, of which the prompt's blocks visit what weighs most."""
    numbers: dict[str, object] = {"threshold": THRESHOLD, "last_tokens": LAST}
    how = (
        f"each {BLOCK_KEYS} rows visit the blocks of {BLOCK_KEYS} keys that make up "
        f"{THRESHOLD:.0%} of the estimated attention of a head, but for the prompt's end"
    )
    return asked(bench, bench.engine(), "xattention", numbers, how, XATTENTION)


PREFILLED, ANSWERED = 7680, 16
"""Tokens of the text that is read, if the model's context has room for them, and of the answer."""


@evidence(
    "pattern",
    "xattention-prefill",
    "The same on a long report in English: the time until it is read. With "
    "`--attention-pattern xattention:threshold=0.97` it is measured with these settings.",
)
def xattention_prefill(bench: Bench) -> Row:
    """A report of as many tokens as fit, and a question for a fact that is hidden in it."""
    engine = bench.engine(reuse="none", speculative_config="none")
    prompt, word = report_of(engine, bench.seed)
    plain = reading(prompt, word, {"pattern/full": True})
    choosing = reading(prompt, word, {"pattern/xattention": True})
    setting = engine.config.attention_pattern
    row = bench.compare(
        "pattern",
        "xattention-prefill",
        lambda: prefilled(engine, plain),
        lambda: prefilled(engine, choosing),
        lambda outcome: attention_flops(engine, outcome.ledger),
        exact=False,
        what=(
            f"a report in English of {len(prompt)} tokens is read; the time is that to the first "
            f"token, the setting {setting if setting.startswith('xattention') else 'xattention'}"
        ),
        unit="FLOPs of attention",
        claim=XATTENTION,
    )
    row.identical = None
    row.recall = recall_of(bench, choosing, "xattention")
    return row


def report_of(engine: Engine, seed: int, most: int = PREFILLED) -> tuple[list[int], str]:
    """A report in English of as many tokens as fit, with a question for a word that is hidden in
    it; and the word."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ConfigError("a text is read in this measurement, and there is no tokenizer.")
    rng = Random(seed)
    tokens = min(most, engine.max_model_len - 4 * BLOCK_KEYS)
    report = write_report(rng, tokens, 4, lambda text: len(tokenizer.encode(text)))
    hidden = rng.choice(report.hidden)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{report.text}\n\n{hidden.question}"}]
    )
    return tokenizer.encode(text, add_special_tokens=False), hidden.word


def reading(prompt: list[int], word: str, asks: dict[str, object]) -> list[Query]:
    """The prompt of a report, with what is asked of techniques."""
    return [Query(prompt, ANSWERED, make_asks(asks), lambda said: float(word in said))]


def prefilled(engine: Engine, queries: list[Query]) -> Outcome:
    """The answers, and the time until the prompts are read."""
    found = ask(engine, queries, approximate=True)
    return Outcome([[each] for each in found.answers], found.ledger, found.ledger.prefill_s)


KEYS, HEADS, KV_HEADS, HEAD_DIM = 32000, 32, 8, 128
"""A layer of an 8B model."""
ROWS, SHARE = 2 * BLOCK_KEYS, 0.25


@evidence(
    "pattern",
    "xattention-long",
    "The same on random keys and values, at 32,000 tokens: the time of a layer's attention alone.",
)
def xattention_long(bench: Bench) -> Row:
    """Two blocks of rows at the end of a long prompt, which visit a quarter of the keys."""
    from ockham.lab.kernels.steps import step_over

    executor = attention_of(bench, KEYS, HEADS, KV_HEADS, HEAD_DIM, 1)
    pattern = make("pattern", f"xattention:threshold=1,share={SHARE}")
    opened = pattern.open(
        make_ask("pattern/xattention", True), [AttentionGroup((0,), KV_HEADS, None)]
    )
    steps = {chooses: step_over(1, ROWS, KEYS) for chooses in (False, True)}
    prompt = opened.for_prompt(KEYS + pattern.options.last_tokens)
    put_choices(steps[True], [(prompt, slice(0, ROWS), KEYS)])

    def run(chooses: bool) -> Outcome:
        under_way = executor.begin(steps[chooses])
        executor.run(under_way, 0, 2)
        started = time.perf_counter()
        executor.run(under_way, 2, 3)
        seconds = time.perf_counter() - started
        keys = KV_HEADS * int(steps[chooses].groups[0].keys_seen.sum())
        left_out = executor.finish(under_way).left_out
        keys -= sum(int(of_rows[0].sum()) for of_rows in left_out.values())
        return Outcome([], Ledger(), seconds, float(keys))

    row = bench.compare(
        "pattern",
        "xattention-long",
        lambda: run(False),
        lambda: run(True),
        lambda outcome: outcome.observed,
        exact=False,
        what=(
            f"a layer of attention alone, {HEADS} query heads over {KV_HEADS} of {HEAD_DIM} "
            f"elements, random keys and values of {KEYS} tokens: the last {ROWS} rows visit "
            f"{SHARE:.0%} of the blocks, whatever they hold; what the choice takes is in the time, "
            "and among the keys as many as take as many products"
        ),
        unit="keys looked at",
        claim=XATTENTION,
    )
    row.identical = None
    return row
