"""Evidence for what drafts tokens: code edited by the model, with every draft and without any."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise
from random import Random

import msgspec

from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.recipe import TRAINED, counterfactual, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks import TASKS

counterfactual("drafter", "none")

RECORD = {
    "type": "object",
    "properties": {
        "customer_identifier": {"type": "integer", "maximum": 9999, "minimum": 0},
        "requested_delivery_date": {"enum": ["today", "tomorrow", "next week"]},
        "shipping_and_handling_included": {"type": "boolean"},
        "payment_method_preference": {"enum": ["invoice", "credit_card", "bank_transfer"]},
        "special_instructions_for_delivery": {"type": "string", "maxLength": 20},
    },
    "required": [
        "customer_identifier",
        "requested_delivery_date",
        "shipping_and_handling_included",
        "payment_method_preference",
        "special_instructions_for_delivery",
    ],
    "additionalProperties": False,
}
GRAMMAR = (
    "jump-forward decoding (SGLang): no forward pass for what a grammar leaves no choice about"
)
SPECDEC = (
    "SpecDec++ (arXiv:2405.19715): 2.04 to 2.26 times as fast as decoding token by token, with "
    "llama-2-chat 7B drafting for 70B"
)
PROMPTS, ANSWERED = 6, 96
BEGINNING = 200
"""Tokens of a text that goes on."""
ALWAYS: dict[str, object] = {"adaptive": False, "num_speculative_tokens": 6}
"""Every draft is verified: on so small a model the controller would see that a drafter with a model
does not pay, and draft nothing, and nothing could be said of its drafts."""
COPYSPEC = (
    "CopySpec (arXiv:2502.08923): 2.35 times as fast on CNN/DM and 3.08 on MT-Redundant's second "
    "turns, against decoding token by token"
)

LOOKAHEAD = (
    "Lookahead (paper 191, arXiv:2312.12728): a trie with several branches brings a substantial "
    "increase in speed without loss; its abstract has no figures"
)
TOKEN_RECYCLING = (
    "Token Recycling (paper 187): about twice as fast at all sizes of models, with less than 2 MB "
    "of memory; 30% faster than other methods without training"
)
ADED = (
    "ADED (paper 212): a tri-gram matrix that adapts and an exploring draft accelerate decoding "
    "significantly; its abstract has no figures"
)

MEDUSA = "Medusa-1 (paper 160, arXiv:2401.10774): over 2.2 times as fast, without loss of quality"
PPD = (
    "Parallel Prompt Decoding (paper 65, arXiv:2405.18628): up to 2.49 times as fast, with 0.0002% "
    "trainable parameters"
)
M2R2 = (
    "M2R2 (paper 128, arXiv:2502.02040): up to 2.8 times as fast on MT-Bench in self-speculative "
    "decoding"
)

DEEPSEEK = (
    "DeepSeek-V3 (arXiv:2412.19437): 85% to 90% of the tokens after the next one are accepted, 1.8 "
    "times the tokens a second"
)
EAGLE3 = (
    "EAGLE-3 (arXiv:2503.01840): up to 6.5 times as fast, some 1.4 times as EAGLE-2, without loss"
)

SWIFT = "SWIFT (arXiv:2410.06916): 1.3 to 1.6 times as fast, with nothing trained"
MATFORMER = (
    "MatFormer (arXiv:2310.07707): smaller models inside of one agree with it, so that speculative "
    "decoding with them is faster; its abstract has no figures"
)
NESTED = {"lab": "lab-nested"}
"""Of a built-in model, the one whose first neurons are smaller models."""


@evidence("drafter", "copying")
def copying(bench: Bench) -> Row:
    """Edits of code: most of the answer stands in the prompt."""
    return drafting(bench, "copying", COPYSPEC)


@evidence("drafter", "grammar")
def grammar(bench: Bench) -> Row:
    """Records of a JSON schema with long keys: what stands between the values is known."""
    asked = StructuredOutputsParams(json=RECORD, disable_any_whitespace=True)
    params = msgspec.structs.replace(greedy(ANSWERED), structured_outputs=asked)
    what = f"{PROMPTS} JSON objects of a schema with long keys, one after the other"
    return compared(bench, "grammar", GRAMMAR, params, what)


@evidence("drafter", "draft_model", only_lab=TRAINED)
def draft_model(bench: Bench) -> Row:
    """The same with the built-in model's own drafter, nine times smaller."""
    return drafting(bench, "draft_model", SPECDEC, model="lab-drafter", **ALWAYS)


@evidence("drafter", "medusa", only_lab=TRAINED)
def medusa(bench: Bench) -> Row:
    """The same with heads trained on the built-in model."""
    return drafting(bench, "medusa", MEDUSA, model="lab-medusa", **ALWAYS)


@evidence("drafter", "prompt_tokens", only_lab=TRAINED)
def prompt_tokens(bench: Bench) -> Row:
    """The same with prompt tokens trained for the built-in model."""
    return drafting(bench, "prompt_tokens", PPD, model="lab-prompt-tokens", **ALWAYS)


@evidence("drafter", "early_exit", only_lab=TRAINED)
def early_exit(bench: Bench) -> Row:
    """The same with the built-in model's own first layers."""
    return drafting(bench, "early_exit", M2R2, model="lab-early-exit", **ALWAYS)


@evidence("drafter", "mtp", only_lab=TRAINED)
def mtp(bench: Bench) -> Row:
    """The same with a block trained for the built-in model."""
    return drafting(bench, "mtp", DEEPSEEK, model="lab-mtp", **ALWAYS)


@evidence("drafter", "eagle3", only_lab=TRAINED)
def eagle3(bench: Bench) -> Row:
    """The same with a head trained for the built-in model."""
    return drafting(bench, "eagle3", EAGLE3, model="lab-eagle3", **ALWAYS)


@evidence("drafter", "skip")
def skip(bench: Bench) -> Row:
    """The same with the built-in model without a quarter of its attentions and feed-forwards."""
    return drafting(bench, "skip", SWIFT, **ALWAYS)


@evidence("drafter", "nested", only_lab=TRAINED)
def nested(bench: Bench) -> Row:
    """The same with the first quarter of the neurons of a model that was trained so."""
    target = NESTED.get(bench.config.model, bench.config.model)
    return drafting(bench, "nested", MATFORMER, target, **ALWAYS)


@evidence(
    "drafter", "nested-steps", "The same of arithmetic that is written out in steps.", TRAINED
)
def nested_steps(bench: Bench) -> Row:
    """What the built-in model writes by itself, and does not copy."""
    return _nested(bench, "steps", "answers written out in steps")


@evidence("drafter", "nested-code", "The same of code that goes on.", TRAINED)
def nested_code(bench: Bench) -> Row:
    """Code that goes on after its beginning."""
    return _nested(bench, "code", "continuations of code")


def _nested(bench: Bench, task: str, what: str) -> Row:
    target = NESTED.get(bench.config.model, bench.config.model)
    prompts = items(bench, bench.engine(model=target), task)
    what = f"{PROMPTS} {what}, one after the other, {ANSWERED} tokens each, by {target}"
    params = greedy(ANSWERED)
    return compared(bench, "nested", MATFORMER, params, what, prompts, target, **ALWAYS)


@evidence("drafter", "trie")
def trie(bench: Bench) -> Row:
    """The same edits, drafted from all that was read and written before."""
    return drafting(bench, "trie", LOOKAHEAD)


@evidence("drafter", "recycling")
def recycling(bench: Bench) -> Row:
    """The same edits, drafted from what was likely before."""
    return drafting(bench, "recycling", TOKEN_RECYCLING)


@evidence("drafter", "trigram")
def trigram(bench: Bench) -> Row:
    """The same edits, drafted by counts of three tokens in a row."""
    return drafting(bench, "trigram", ADED)


def drafting(bench: Bench, name: str, claim: str, target: str = "", /, **config: object) -> Row:
    """Edit code with one drafter and without any, one request after the other; with the model
    `target`, where that is another one."""
    what = f"{PROMPTS} edits of code, one after the other, {ANSWERED} tokens each"
    if target not in ("", bench.config.model):
        what = f"{what}, by {target}"
    return compared(bench, name, claim, greedy(ANSWERED), what, None, target, **config)


def compared(
    bench: Bench,
    name: str,
    claim: str,
    params: SamplingParams,
    what: str,
    prompts: list[list[int]] | None = None,
    target: str = "",
    /,
    **config: object,
) -> Row:
    """The same requests with one drafter and without any; edits unless `prompts` are given. By the
    model `target`, where one is named."""
    if config.get("adaptive") is False:
        what = f"{what}; every draft verified, whether it pays or not"
    model = {"model": target} if target else {}
    engines = [
        bench.engine(**model),
        bench.engine(**model, speculative_config={"method": name, **config}),
    ]
    if prompts is None:
        prompts = items(bench, engines[0], "edit")
    wanted = requests(prompts, [params] * len(prompts))
    runs = count()
    row = bench.compare(
        "drafter",
        name,
        lambda: _steps(engines[0], wanted, next(runs)),
        lambda: _steps(engines[1], wanted, next(runs)),
        lambda outcome: outcome.observed,
        exact=True,
        what=what,
        unit="steps of the engine",
        claim=claim,
    )
    row.tokens_per_step = params.max_tokens * len(wanted) / row.with_ if params.max_tokens else None
    counted = engines[1].stats().drafts
    reached = [counted.drafts, *counted.accepted_at]
    row.accepted_at = tuple(after / before for before, after in pairwise(reached) if before)[:8]
    return row


def items(bench: Bench, engine: Engine, task: str) -> list[list[int]]:
    """Items of a task as the model's chats begin, or the beginnings of texts; where there is no
    tokenizer, tokens that repeat themselves."""
    if bench.workload or engine.tokenizer is None:
        return bench.prompts(engine, [200] * PROMPTS)
    rng = Random(f"drafts {bench.seed}")
    found = []
    for number in range(PROMPTS):
        item = TASKS[task].item(rng.randrange(1 << 30), number, "test")
        if item.text is None:
            text = engine.tokenizer.apply_chat_template([dict(m) for m in item.messages])
            found.append(engine.tokenizer.encode(text, add_special_tokens=False))
        else:
            found.append(engine.tokenizer.encode(item.text, add_special_tokens=False)[:BEGINNING])
    return found


def _steps(engine: Engine, wanted: list[Request], run_number: int) -> Outcome:
    """Run requests one by one, for a tenant of their own: drafters that learn have not met the
    texts in an earlier run. Observed is the number of steps."""
    salt = f"run {run_number}"
    wanted = [msgspec.structs.replace(request, cache_salt=salt) for request in wanted]
    before = engine.scheduler.steps
    outcome = run(engine, wanted, at_once=1)
    return replace(outcome, observed=float(engine.scheduler.steps - before))
