"""Evidence for gates: what it saves to run a part of the model, and what it changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab import oracle
from ockham.lab.evidence.bench import Bench, greedy, requests, run
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.real_model import MISSING, NAME, TEXTS
from ockham.lab.evidence.recipe import TRAINED, counterfactual, evidence
from ockham.lab.evidence.row import Fidelity, Row
from ockham.lab.returning import Query, ask, change
from ockham.lab.tasks import TASKS, items

counterfactual("gate", "whole")

SKIPPED_ALONE, ITEMS = 8, 2
"""Of so many layers (of all, or spread evenly) it is said what leaving that one out changes, on so
many items of each task."""


@evidence("gate", "skip_layers")
def skip_layers(bench: Bench) -> Row:
    """Decoding without the layer that changes least, and what each layer is worth."""
    plain = bench.engine()
    layers = plain.model.description.layers
    chosen = sorted({i * (layers - 1) // (SKIPPED_ALONE - 1) for i in range(SKIPPED_ALONE)})
    gated = {layer: bench.engine(gate=f"skip_layers:layers={layer}") for layer in chosen}
    changed = {layer: fidelity_of(bench, plain, gated[layer], ITEMS) for layer in chosen}
    least = max(chosen, key=lambda layer: changed[layer].agreement)
    wanted = requests(bench.prompts(plain, [32] * 2), [greedy(48)] * 2)
    agreements = ", ".join(f"{layer}: {each.agreement:.1%}" for layer, each in changed.items())
    row = bench.compare(
        "gate",
        "skip_layers",
        lambda: run(plain, wanted),
        lambda: run(gated[least], wanted),
        lambda outcome: outcome.ledger.flops,
        exact=False,
        identical=None,
        what=f"decoding two sequences of 48 tokens without layer {least} of {layers}; agreement "
        f"with the whole model by the layer that is left out: {agreements}",
        unit="FLOPs",
        fidelity=fidelity_of(bench, plain, gated[least]),
        claim="ShortGPT (Men et al. 2024, arXiv:2403.03853): without a quarter of Llama 2 13B's "
        "layers, MMLU falls from 55.0 to 52.2",
    )
    row.compare_answers(*bench.answers(plain, gated[least]))
    return row


WRITTEN = ("code", "prose")
"""Texts whose last three quarters are read under a gate, as if they were written."""
ANSWERED, READ = 24, 8
"""Items of each."""
BATCHES = (1, 2, 4, 8)

Asking = Callable[[int | None], dict[str, Any]]
"""What a request asks of a gate that lets a prompt alone, as a dictionary; given a place, as if the
prompt ended there."""


@evidence("gate", "skip_decode")
def skip_decode(bench: Bench) -> Row:
    """Text whose tokens run ever fewer layers, down to three quarters and to a half."""
    return _written(
        bench,
        "skip_decode",
        {
            "down to 90%": partial(_narrowing, {"least": 0.9}),
            "down to 75%": partial(_narrowing, {"least": 0.75}),
            "down to 75% and all but the lowest, as in the paper": partial(
                _narrowing, {"least": 0.75, "warm_up": 1}
            ),
        },
        f"each token of which runs fewer of the layers than the one before, down to 75% of them "
        f"after {OVER} tokens",
        1,
        "SkipDecode (Del Corro et al. 2023, arXiv:2307.02628): OPT 1.3B and 6.7B, fine-tuned, 2 to "
        "5 times as fast with little lost",
        spread=2 * OVER,
    )


SATURATED = ((0.99, 1), (0.98, 1), (0.98, 2))
"""Cosines from which on so many feed-forwards are skipped."""


@evidence("gate", "skip_feed_forward")
def skip_feed_forward(bench: Bench) -> Row:
    """Text whose rows skip feed-forwards once one has changed them little."""
    return _written(
        bench,
        "skip_feed_forward",
        {
            f"{length} from a cosine of {threshold} on": partial(
                _sparing, {"threshold": threshold, "length": length}
            )
            for threshold, length in SATURATED
        },
        "each row of which skips the next feed-forward once one has turned it so little that the "
        "cosine is 0.98 or more, but for the first and the last fifth of the layers",
        1,
        "FFN-SkipLLM (Jaiswal et al. 2024, arXiv:2404.03865): Llama 2 7B and 13B without 25% to "
        "30% of the feed-forwards, with little lost; more than 35% destroys the answers",
    )


def _sparing(settings: dict[str, Any], first: int | None) -> dict[str, Any]:
    return {"full": 8, **settings, **({} if first is None else {"first": first})}


ROUTERS = Path(__file__).with_name("lab_nested_routers")
"""What `ockham train gate lab-nested DIR --tokens 80000 --budget 0.4` wrote."""
NESTED, TOKENS_SOUGHT = "lab-nested", 24


@evidence("gate", "adaptive_width", only_lab=TRAINED)
def adaptive_width(bench: Bench) -> Row:
    """The lab model with nested widths, whose rows choose how many neurons they run; beside widths
    that are the same for all rows, and beside the best paths that a search finds."""
    setting = f"adaptive_width:router={ROUTERS}"
    plain, gated = bench.engine(model=NESTED), bench.engine(model=NESTED, gate=setting)
    even = {
        share: bench.engine(model=NESTED, gate=f"adaptive_width:share={share}")
        for share in (0.25, 0.5)
    }
    wanted = requests(bench.prompts(plain, [32]), [greedy(64)])
    fidelity, right = fidelity_of(bench, plain, gated), _right(bench, plain)
    losses = {share: fidelity_of(bench, plain, each).agreement for share, each in even.items()}
    others = ", ".join(
        f"{share:.0%} of the neurons for every row: {losses[share]:.1%} and "
        f"{_right(bench, each):.0%}"
        for share, each in even.items()
    )
    batches = []
    for batch in BATCHES:
        several = requests(bench.prompts(plain, [16] * batch), [greedy(DECODED)] * batch)
        without, with_ = (run(each, several).ledger.weight_bytes for each in (plain, gated))
        batches.append(f"{1 - with_ / without:.0%} at {batch}")
    found = oracle.of_model(NESTED, ROUTERS, TOKENS_SOUGHT, bench.seed)
    return bench.compare(
        "gate",
        "adaptive_width",
        lambda: run(plain, wanted),
        lambda: run(gated, wanted),
        lambda outcome: outcome.ledger.flops,
        exact=False,
        identical=None,
        what=f"{NESTED}, decoding 64 tokens, each row of which chooses in each layer whether none, "
        f"a quarter or all of the neurons run. Likeliest tokens that stay, and right answers to "
        f"{_written_tasks(bench)}, beside it: {others}. By the rows of a step, it saves "
        f"{', '.join(batches)} of the weight bytes. The oracle: " + "; ".join(oracle.told(found)),
        unit="FLOPs",
        fidelity=fidelity,
        scores=(right, _right(bench, gated)),
        claim="Duo-LLM (Alizadeh et al. 2024, arXiv:2410.10846): with an oracle, the large module "
        "in one layer is better than in all, and trained routers stay behind it; adaptive "
        "computation modules (Wojcik et al. 2023, arXiv:2312.10193): no figures for language",
        model=NESTED,
    )


RECURSIVE = "lab-recursive"
READ_TOKENS = 256
"""Of each text whose rows are counted."""


@evidence("gate", "recursions", only_lab=TRAINED)
def recursions(bench: Bench) -> Row:
    """The lab model with shared layers, whose rows choose how often they run those, beside the same
    number of passes for every row."""
    routed = bench.engine(model=RECURSIVE)
    depths = range(1, routed.gates.model.passes + 1)
    fixed = {
        depth: bench.engine(model=RECURSIVE, gate=f"recursions:depth={depth}") for depth in depths
    }
    whole = fixed[depths[-1]]
    right = {depth: _right(bench, each) for depth, each in fixed.items()}
    changed = {
        depth: fidelity_of(bench, whole, each).agreement
        for depth, each in fixed.items()
        if each is not whole
    }
    others = ", ".join(
        f"{depth} for every row: {changed.get(depth, 1.0):.1%} and {right[depth]:.0%}"
        for depth in depths
    )
    taken, kept = _passes_taken(routed, _texts(bench, routed))
    batches = []
    for batch in BATCHES:
        several = requests(bench.prompts(routed, [16] * batch), [greedy(DECODED)] * batch)
        without, with_ = (run(each, several).ledger.weight_bytes for each in (whole, routed))
        batches.append(f"{1 - with_ / without:.0%} at {batch}")
    wanted = requests(bench.prompts(routed, [32]), [greedy(64)])
    return bench.compare(
        "gate",
        "recursions",
        lambda: run(whole, wanted),
        lambda: run(routed, wanted),
        lambda outcome: outcome.ledger.flops,
        exact=False,
        identical=None,
        what=f"{RECURSIVE}, decoding 64 tokens, each row of which chooses how many of "
        f"{len(depths)} passes it takes. Of tokens of text, "
        f"{' and '.join(f'{share:.0%}' for share in taken)} take the passes after the first, and "
        f"{kept:.0%} of the state of all passes is kept. Likeliest tokens that stay, and right "
        f"answers to {_written_tasks(bench)}, at a number of passes that is fixed: {others}. By "
        f"the rows of a step, it saves {', '.join(batches)} of the weight bytes",
        unit="FLOPs",
        fidelity=fidelity_of(bench, whole, routed),
        scores=(right[depths[-1]], _right(bench, routed)),
        claim="Mixture-of-Recursions (Bae et al. 2025, arXiv:2507.10524): at equal training FLOPs "
        "lower validation perplexity than fixed depth, and up to 2.06 times the throughput",
        model=RECURSIVE,
    )


def _passes_taken(engine: Engine, texts: list[list[int]]) -> tuple[list[float], float]:
    """The share of the tokens of texts that take each pass but the first, and of the bytes of
    state that is kept of what all passes of all tokens would take."""
    state, cells, tokens = engine.state, [0] * len(engine.state.groups), 0
    for number, text in enumerate(texts):
        [request] = requests([text[:READ_TOKENS]], [greedy(2)])
        engine.take(msgspec.structs.replace(request, request_id=f"read {number}"))
        while engine.has_work:
            engine.step()
            for sequence in engine.scheduler.running:
                view = sequence.view
                if view is not None and view.tokens == len(request.prompt_token_ids):
                    tokens += view.tokens
                    for group, held in enumerate(view.groups):
                        cells[group] += held.length
    of_each = [layout.cell_bytes for layout in state.groups]
    kept = sum(nbytes * count for nbytes, count in zip(of_each, cells, strict=True))
    return [cells[group] / tokens for group in state.of_passes], kept / (tokens * sum(of_each))


def _written_tasks(bench: Bench) -> str:
    return " and ".join(bench.suite.written)


def _right(bench: Bench, engine: Engine) -> float:
    """The share of right answers under the engine's own setting."""
    return ask(engine, scored(bench, engine), False, at_once=8).score


DECODED = 32
"""Tokens of each text of a batch, where they come together."""
OVER = 32
"""Tokens until the depth falls no further."""


def _narrowing(settings: dict[str, Any], first: int | None) -> dict[str, Any]:
    return {"over": OVER, **settings, **({} if first is None else {"first": first})}


def _written(
    bench: Bench,
    name: str,
    asking: dict[str, Asking],
    how: str,
    chosen: int,
    claim: str,
    spread: int = 0,
) -> Row:
    """The row of a gate that lets prompts alone, with each of several asks of it, of which number
    `chosen` is timed. The texts of a batch are `spread` tokens long and come evenly spread; at
    once where it is 0."""
    engine = bench.engine()
    asks = list(asking.values())
    changed = {each: _change(engine, _texts(bench, engine), name, asking[each]) for each in asking}
    plainly = _scores(bench, engine, name, None)
    scored = {each: _scores(bench, engine, name, asking[each]) for each in asking}
    label = list(asking)[chosen]
    prompts = bench.prompts(engine, [32])
    plain = requests(prompts, [greedy(64)])
    gated = [_asking(each, name, asks[chosen], None) for each in plain]
    losses = "; ".join(
        f"{each}: {changed[each].agreement:.1%} of the likeliest tokens, "
        f"{fmean(scored[each]):.0%} of the answers right"
        for each in asking
    )
    row = bench.compare(
        "gate",
        name,
        lambda: run(engine, plain),
        lambda: run(engine, gated),
        lambda outcome: outcome.ledger.flops,
        exact=False,
        identical=None,
        what=f"decoding 64 tokens, {how}. What stays ({fmean(plainly):.0%} of the "
        f"answers to {_written_tasks(bench)} are right without it): {losses}. By the rows of a "
        f"step, it saves {_batches(engine, bench, name, asks[chosen], spread)}",
        unit="FLOPs",
        fidelity=changed[label],
        claim=claim,
        real_model=MISSING,
    )
    row.compare_answers(plainly, scored[label])
    if bench.real_model is not None:
        real = bench.engine(model=str(bench.real_model), tokenizer=None)
        found = {each: _change(real, real_texts(real), name, asking[each]) for each in asking}
        row.real_model, row.real_fidelity = NAME, found[label]
        row.what += (
            f". On {NAME}, "
            + ", ".join(f"{each}: {found[each].agreement:.1%}" for each in asking)
            + " of the likeliest tokens; by the rows of a step, it saves "
            f"{_batches(real, bench, name, asks[chosen], spread)}"
        )
    return row


def _asking(request: Request, name: str, asking: Asking, first: int | None) -> Request:
    return msgspec.structs.replace(request, asks=make_asks({f"gate/{name}": asking(first)}))


def _texts(bench: Bench, engine: Engine) -> list[list[int]]:
    assert engine.tokenizer is not None, "evidence is measured on models with a tokenizer"
    return [
        engine.tokenizer.encode(item.text or "")[:400]
        for task in WRITTEN
        for item in items(task, bench.seed, min(READ, bench.suite.compared))
    ]


def real_texts(engine: Engine) -> list[list[int]]:
    assert engine.tokenizer is not None, "the file carries its tokenizer"
    return [engine.tokenizer.encode(text) for text in json.loads(TEXTS.read_text("utf-8"))]


def _change(engine: Engine, texts: list[list[int]], name: str, asking: Asking) -> Fidelity:
    """What a gate changes in the last three quarters of texts, as if they were written."""
    queries = []
    for tokens in texts:
        cut = max(1, len(tokens) // 4)
        asked = make_asks({f"gate/{name}": asking(cut)})
        queries.append(Query(tokens[:cut], 1, asked, continued=tuple(tokens[cut:])))
    found = change(engine, queries)
    return Fidelity(
        agreement=found.agreement,
        kl_mean=found.kl_mean,
        kl_p99=found.kl_p99,
        positions=found.positions,
        perplexity_ratio=found.perplexity_ratio,
    )


def _scores(bench: Bench, engine: Engine, name: str, asking: Asking | None) -> list[float]:
    """How right questions are answered with a gate, or without."""
    asked = make_asks({} if asking is None else {f"gate/{name}": asking(None)})
    queries = [replace(query, asked=asked) for query in scored(bench, engine)]
    return ask(engine, queries, True, at_once=8).scores


def scored(bench: Bench, engine: Engine) -> list[Query]:
    """Questions of the suite's written tasks, whose answers are written under a gate."""
    tokenizer, queries = engine.tokenizer, []
    assert tokenizer is not None, "evidence is measured on models with a tokenizer"
    for task in bench.suite.written:
        for item in items(task, bench.seed, ANSWERED):
            text = tokenizer.apply_chat_template([dict(message) for message in item.messages])
            tokens = tokenizer.encode(text, add_special_tokens=False)
            queries.append(Query(tokens, item.max_tokens, {}, partial(TASKS[task].score, item)))
    return queries


def _batches(engine: Engine, bench: Bench, name: str, asking: Asking, spread: int) -> str:
    """What a gate saves of the weight bytes that decoding reads, by the rows of a step. Texts that
    come evenly spread, each of `spread` tokens, are decoded until the place of the first one is
    that of the next one."""
    found = []
    for batch in BATCHES:
        prompts = bench.prompts(engine, [spread + 16] * batch)
        apart = spread // batch
        firsts = [spread + 16 - number * apart for number in range(batch)]
        sides = []
        for tokens in (1, 1 + (apart or DECODED)):
            plain = requests(prompts, [greedy(tokens)] * batch)
            gated = [
                _asking(request, name, asking, first)
                for request, first in zip(plain, firsts, strict=True)
            ]
            sides.append((plain, gated))
        # What comes before the first token is taken away.
        begun, all_ = ([run(engine, each) for each in side] for side in sides)
        nbytes = [
            b.ledger.weight_bytes - a.ledger.weight_bytes for a, b in zip(begun, all_, strict=True)
        ]
        found.append(f"{1 - nbytes[1] / nbytes[0]:.0%} at {batch}")
    return ", ".join(found) + " of the weight bytes"
