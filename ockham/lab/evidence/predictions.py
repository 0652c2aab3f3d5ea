"""Evidence for state that a smaller model predicts: time to the first token against answers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from ockham.core.errors import ConfigError
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.fidelity import fidelity_of_answers
from ockham.lab.evidence.recipe import TRAINED, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.returning import Query, ask
from ockham.lab.state_maps import FittedMaps, fit_maps
from ockham.lab.tasks import TASKS
from ockham.model.checkpoint.prediction_files import write_maps
from ockham.model.hub import resolve
from ockham.text.marking import ReuseParams
from ockham.text.tokenizer import Tokenizer

AUXILIARY = "lab-drafter"
LEARNED_TOKENS, LONGEST = 20_000, 600
"""Of the texts that the maps are fitted to here."""
ITEMS = 12
ASKED = ("recall", "documents", "steps")

HORTON = (
    "KV Prediction (paper 53, arXiv:2410.08391): at equal FLOPs up to the first token 15% to 50% "
    "better accuracy on TriviaQA than smaller models; of pairs that were trained together"
)


@evidence("reuse", "kv_prediction", only_lab=TRAINED)
def kv_prediction(bench: Bench) -> Row:
    """The lab's questions, read by its drafter, while only the last tokens are computed."""
    with TemporaryDirectory() as folder:
        bench.tell(f"fitting maps from {AUXILIARY} to {bench.config.model}")
        fitted = lab_maps(bench.config.model, Path(folder))
        engine = bench.engine(reuse=f"kv_prediction:maps={folder}")
        queries = _queries(bench, engine.max_model_len)
        first = [replace(query, max_tokens=1, score=None) for query in queries]

        def run(approximate: bool) -> Outcome:
            found = ask(engine, first, approximate)
            return Outcome([[answer] for answer in found.answers], found.ledger, found.seconds)

        row = bench.compare(
            "reuse",
            "kv_prediction",
            lambda: run(False),
            lambda: run(True),
            lambda outcome: outcome.ledger.prompt_tokens_computed,
            exact=False,
            what="",
            unit="prompt tokens computed",
            claim=HORTON,
        )
        scores = [ask(engine, queries, approximate).scores for approximate in (False, True)]
        row.fidelity = fidelity_of_answers(engine, queries)
    row.what = (
        f"the first token of answers to {len(queries)} questions of {', '.join(ASKED)}, one after "
        f"another; {AUXILIARY} reads them, with maps fitted to {LEARNED_TOKENS:,} tokens, which "
        f"explain {fitted.explained:.0%} of the variance of held-out keys and values"
    )
    row.identical = None  # it is approximate: `fidelity` says how much
    row.compare_answers(scores[0], scores[1])
    return row


def lab_maps(model: str, folder: Path, tokens: int = LEARNED_TOKENS) -> FittedMaps:
    """Maps from the lab's drafter to a model, fitted to about so many tokens of the lab's tasks and
    written to a folder."""
    texts: list[list[int]] = []
    rng, tokenizer = Random("maps"), Tokenizer(resolve(model))
    for number in itertools.count():
        if sum(map(len, texts)) >= tokens:
            break
        item = TASKS[ASKED[number % len(ASKED)]].item(rng.randrange(1 << 30), number, "train")
        answer = {"role": "assistant", "content": item.answer}
        text = tokenizer.apply_chat_template([*map(dict, item.messages), answer])
        texts.append(tokenizer.encode(text, add_special_tokens=False)[:LONGEST])
    fitted = fit_maps(model, AUXILIARY, texts)
    write_maps(folder, fitted.maps)
    return fitted


def _queries(bench: Bench, room: int) -> list[Query]:
    """Questions that the model has room for."""
    tokenizer, found = Tokenizer(resolve(bench.config.model)), []
    asked = ReuseParams(reuse="kv_prediction").asks
    for number in range(ITEMS):
        task = TASKS[ASKED[number % len(ASKED)]]
        item = task.item(bench.seed, number // len(ASKED), "test")
        text = tokenizer.apply_chat_template([dict(message) for message in item.messages])
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) + item.max_tokens <= room:
            found.append(Query(tokens, item.max_tokens, asked, partial(task.score, item)))
    if not found:
        raise ConfigError(f"no question of this measurement fits into a context of {room} tokens.")
    return found
