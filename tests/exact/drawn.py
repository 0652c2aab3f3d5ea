"""What requests of the exactness machine ask for, drawn as data that names them completely."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ockham.core.sampling_params import SamplingParams
from ockham.core.thoughts import RepetitionDetectionParams, ThoughtMarks
from ockham.engine.messages import Request
from tests.helpers.grammars import GRAMMARS

CHOOSING = {"tokens": 0, "sinks": 0, "local": 1, "dense_layers": 0}
PATTERNS: list[dict[str, Any]] = [
    {"pattern/streaming": {"heads": "all", "sink_blocks": 0, "window_blocks": 1}},
    {"pattern/streaming": {"heads": 0.5, "sink_blocks": 1, "window_blocks": 1}},
    {"pattern/strided": {"local_blocks": 1, "stride": 2, "dense_every": 2}},
    {"pattern/dilated": {"window_blocks": 1}},
    {
        "pattern/triangle": {
            "dense_share": 0,
            "window_blocks": 1,
            "sink_blocks": 0,
            "last_tokens": 9,
        }
    },
    {"pattern/quest": {**CHOOSING, "share": 0.5}},
    {"pattern/quest": {**CHOOSING, "share": 0.5, "every": 4}},
    {"pattern/quest": {**CHOOSING, "first": 70}},
    {"pattern/scan": {**CHOOSING, "share": 0.5, "first": 70, "every": 16}},
    {"pattern/scan": {**CHOOSING, "share": 0.5}},
    {"pattern/xattention": {"threshold": 0.2, "sink_blocks": 0, "last_tokens": 1}},
    {"pattern/minference": {"share": 0.4, "sink_blocks": 0, "last_tokens": 1}},
    {"pattern/minference": {"share": 0.4, "rule": "means", "last_tokens": 30}},
    {"pattern/squeezed": {"context": 70, "share": 0.0, "sinks": 0, "dense_layers": 0}},
    {"pattern/squeezed": {"context": 130, "share": 0.0, "dense_layers": 0, "prompts": True}},
]
"""Approximate, and yet the same bits in any company: by logical index."""


PARTS: dict[str, list[dict[str, Any]]] = {
    "skip": [
        {"layers": [1]},
        {"layers": "0", "part": "feed_forward"},
        {"layers": [0], "part": "attention"},
        {"share": 0.25},
        {"part": "feed_forward"},
    ],
    "nested": [{"share": 0.5, "multiple": 16}, {"share": 0.1, "multiple": 1}],
}
"""By drafter, what of a model of two layers drafts: what is left out is named, or chosen while it
runs; and how many neurons run."""


def requests(vocabulary: int) -> st.SearchStrategy[dict[str, Any]]:
    """Prompts and parameters, as data that names them completely."""
    return st.fixed_dictionaries(
        {
            "prompt_seed": st.integers(0, 30),
            "prompt_tokens": st.one_of(st.integers(1, 12), st.integers(1, 150)),
            "temperature": st.sampled_from([0.0, 0.7, 1.0, 1.5]),
            "top_p": st.sampled_from([1.0, 0.9]),
            "top_k": st.sampled_from([0, 40]),
            "min_p": st.sampled_from([0.0, 0.0, 0.05]),
            "repetition_penalty": st.sampled_from([1.0, 1.2]),
            "frequency_penalty": st.sampled_from([0.0, 0.0, 0.5]),
            "seed": st.integers(0, 5),
            "max_tokens": st.integers(1, 24),
            "n": st.sampled_from([1, 1, 1, 2, 3]),
            "logprobs": st.sampled_from([None, 3]),
            "prompt_logprobs": st.sampled_from([None, None, None, 1]),
            "greedy": st.sampled_from([False, False, True]),
            "cache_salt": st.sampled_from(["", "", "", "tenant"]),
            "tenant": st.sampled_from(["", "", "one", "two"]),
            "priority": st.sampled_from([0, 0, -1, 3]),
            "cache_hint": st.sampled_from([None, None, "keep", "discard"]),
            "patient": st.booleans(),
            "orderly": st.sampled_from([False, False, True]),
            "grammar": st.sampled_from([None, None, *range(len(GRAMMARS))]),
            "ignore_eos": st.sampled_from([True, True, False]),
            "scored_share": st.sampled_from([0.0, 0.5, 1.0]),
            "skipped": st.sampled_from([None, None, None, [0], [1]]),
            "narrowing": st.sampled_from([None, None, None, *NARROWING]),
            "sparing": st.sampled_from([None, None, None, *SPARING]),
            "narrow": st.sampled_from([None, None, None, 0.5, 0.25, 0.0]),
            "passes": st.sampled_from([None, None, *PASSES]),
            "skipped_part": st.sampled_from(["layer", "attention", "feed_forward"]),
            "approximate": st.sampled_from([None, None, None, *REUSES]),
            "adapter": st.sampled_from([None, None, 0, 1, 2]),
            "pattern": st.sampled_from([None, None, *PATTERNS]),
            "recent": st.sampled_from([None, None, 3, 20]),
            "budget": st.sampled_from([None, None, *KEPT]),
            "thought": st.sampled_from([None, None, *THOUGHTS]),
            "loops": st.sampled_from([None, None, 3]),
            "lenient": st.sampled_from([None, None, None, None, 0.01]),
            "relay": st.sampled_from([None, None, None, (1, 0), (2, 5), (7,)]),
            "pair": st.sampled_from([*([None] * 12), *PAIRS]),
        }
    )


PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("switch", {"entropy": 2.5, "window": 2, "stay": 2}),
    ("switch", {"entropy": 3.5, "window": 1, "stay": 1}),
    ("cascade", {"by": "mean", "sure": 0.05}),
    ("route", {"joules": 1e-12}),
]
"""Searches in which another model writes, too."""

ONE_TEXT = {"n": 1, "logprobs": None, "prompt_logprobs": None, "grammar": None, "approximate": None}
"""What such a request may ask for."""

NARROWING = [
    {"least": 0.5, "over": 1, "warm_up": 0},
    {"least": 0.5, "over": 9, "warm_up": 0},
]
"""Depths that fall, on a model of two layers."""

PASSES = [
    {"depth": 1},
    {"depth": 2, "first": 9},
    {"depth": 2},
    {"threshold": 0.7},
    {"threshold": 0.2, "first": 70},
]
"""How often rows run layers that run several times."""

SPARING = [
    {"threshold": 0.9, "full": 2, "edge": 0.0},
    {"threshold": 0.5, "length": 3, "first": 7},
]
"""Feed-forwards that rows decide to skip."""


GREEDY = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "logprobs": None,
    "prompt_logprobs": None,
}
"""What leaves nothing to want but the likeliest token, which the head then finds by itself."""


REUSES = ("chunk", "edit", "kv_prediction")
"""What is taken over approximately."""

THOUGHTS = [
    {"budget": 4, "inside": True},
    {"budget": 0, "inside": True},
    {"budget": 3, "inside": False},
    {"budget": None, "inside": True, "stop_token_ids": list(range(40))},
]
"""Thoughts that their budget ends, and stops that do not."""


KEPT = [
    ("snapkv", {"budget": 0.25, "sinks": 2, "window": 4}),
    ("snapkv", {"budget": 12, "sinks": 2, "window": 4, "block": 16}),
    ("h2o", {"budget": 12, "sinks": 2, "block": 16, "every": 2}),
    ("expected", {"budget": 12, "sinks": 2, "window": 4, "block": 16, "by_output": True}),
    ("kvzap", {"share": 0.2, "sinks": 2, "window": 4, "block": 16}),
    ("locret", {"budget": 24, "sinks": 2, "window": 4, "block": 16}),
    ("duo", {"share": 0.5, "sinks": 2, "window": 4, "block": 16}),
    ("d2o", {"budget": 12, "sinks": 2, "block": 16, "layered": True}),
    ("ems", {"budget": 12, "sinks": 2, "window": 4, "block": 16, "alike": 0.5}),
]
"""Rules that keep some cells by what was seen of them, once and block by block."""

LEARNED = {"kvzap", "locret", "duo"}
"""Those of them that are trained for a model all of whose layers attend."""


ADAPTERS = ("adapter/lora",)
"""Keys of asks that decide what a request says: it says the same alone."""

HOW = ("cache_salt", "tenant", "priority", "cache_hint", "patient", "orderly")
"""What is said of a request beside its prompt and parameters."""


DEEPER = "gate/recursions"
"""Of models that run layers several times, in the place of every other gate; see `allowed`."""


def allowed(asks: dict[str, Any], passes: int) -> dict[str, Any]:
    """What a model may be asked that runs its middle layers so many times."""
    if passes == 1:
        return {key: ask for key, ask in asks.items() if key != DEEPER}
    return {
        key: ask
        for key, ask in asks.items()
        if key == DEEPER or key.startswith(("adapter/", "verifier/"))
    }


def build(name: str, data: dict[str, Any], vocabulary: int) -> Request:
    """The request that was drawn."""
    values = dict(data)
    if (pair := values.pop("pair")) is not None:
        values |= ONE_TEXT
    rng = np.random.default_rng(values.pop("prompt_seed"))
    # Prompts of one seed share their beginning.
    prompt = rng.integers(0, vocabulary, 150).tolist()[: values.pop("prompt_tokens")]
    if values.pop("greedy"):
        values |= GREEDY
    how = {name: values.pop(name) for name in HOW}
    values.pop("adapter")
    values.pop("relay")
    grammar = values.pop("grammar")
    if grammar is None:
        values["ignore_eos"] = True
    else:
        values["structured_outputs"] = GRAMMARS[grammar]
    thought, loops = values.pop("thought"), values.pop("loops")
    if thought is not None and grammar is None:
        values["thinking_token_budget"] = thought["budget"]
        values["thinking_closing_text"] = "So."
        values["stop_token_ids"] = thought.get("stop_token_ids")
        values["thought"] = ThoughtMarks(open="e", close="zq", inside=thought["inside"])
    if loops is not None:
        found = RepetitionDetectionParams(max_pattern_size=4, min_count=loops)
        values["repetition_detection"] = found
    score_from = max(1, round(len(prompt) * values.pop("scored_share")))
    asks: dict[str, Any] = {}
    skipped = {"layers": values.pop("skipped"), "part": values.pop("skipped_part")}
    if skipped["layers"] is not None and values["approximate"] is None:
        asks["gate/skip_layers"] = skipped
    narrowing = values.pop("narrowing")
    if narrowing is not None and not asks and values["pattern"] is None:
        asks["gate/skip_decode"] = narrowing
    sparing = values.pop("sparing")
    if sparing is not None and not asks:
        asks["gate/skip_feed_forward"] = sparing
    passes = values.pop("passes")
    narrow = values.pop("narrow")
    if narrow is not None and not asks:
        asks["gate/adaptive_width"] = {"share": narrow}
    if passes is not None:
        asks[DEEPER] = passes
    lenient = values.pop("lenient")
    if lenient is not None and grammar is None:
        asks["verifier/lenient"] = {"threshold": lenient}
    window = values.pop("recent")
    if window is not None and values["approximate"] is None and values["pattern"] is None:
        asks["keep/recent"] = {"window": window, "sinks": 2, "block": 16}
    budget = values.pop("budget")
    if budget is not None and window is None and values["pattern"] is None:
        rule, settings = budget
        asks |= {f"keep/{rule}": settings} if values["approximate"] is None else {}
    if (reuse := values.pop("approximate")) is not None:
        ends = [*range(20, len(prompt), 20), len(prompt)]
        chunks = list(zip([0, *ends], ends, strict=False)) if reuse == "chunk" else []
        asks[f"reuse/{reuse}"] = {"chunks": chunks} if chunks else True
        prompt = prompt[30:] + prompt[:30] if len(prompt) > 60 else prompt
    if (pattern := values.pop("pattern")) is not None:
        [(label, settings)] = pattern.items()
        if reuse is None or not ({"first", "every"} <= settings.keys() or "squeezed" in label):
            asks |= pattern
    if pair is not None:
        asks[f"search/{pair[0]}"] = pair[1]
    params = SamplingParams(**values)
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=params,
        detokenize=False,
        score_from=score_from,
        **how,
        asks=asks,
    )
