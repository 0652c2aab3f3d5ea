"""A row's result has the same bits whatever else is in the step: the first law of the cpu backend.

Here for the executor and all kernels but the products; tests/exact/ drives the whole engine.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ockham.core.step import RowSets
from ockham.kernels.base import Backend
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers import isas
from tests.helpers.programs import ENCODERS, SHAPES, VOCABULARY, Bound, on
from tests.helpers.steps import Part, Stepper, prompt_logits

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

LONG = 1300  # more than one part of 1,024 keys
CHUNKED = ["chunks", "int8 chunks", "chunks and windows"]


@pytest.fixture(params=isas.NAMES)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return isas.use(request.param, monkeypatch)


def cpu(threads: int) -> Backend:
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(threads)


def model(name: str, threads: int = 2) -> Bound:
    shape = SHAPES[name]
    needed = -(-LONG // shape.page_tokens)
    return on(cpu(threads), replace(shape, pages=2 * needed + 40))


def tokens(count: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one.view(np.uint32), other.view(np.uint32)))


@pytest.mark.parametrize("name", SHAPES)
def test_chunks_do_not_change_a_bit(name: str, isa: str) -> None:
    prompt = tokens(90, 1)
    whole = prompt_logits(model(name), [prompt], 512)[0]
    for chunk in (1, 7, 64):
        assert same(prompt_logits(model(name), [prompt], chunk)[0], whole), f"chunks of {chunk}"


@pytest.mark.parametrize("name", ["plain", "bf16", "windows", "one head", "odd pages", *CHUNKED])
def test_chunks_of_long_prompts_do_not_change_a_bit(name: str, isa: str) -> None:
    prompt = tokens(LONG, 2)
    whole = prompt_logits(model(name), [prompt], LONG)[0]
    for chunk in (1, 500):
        assert same(prompt_logits(model(name), [prompt], chunk)[0], whole), f"chunks of {chunk}"


@pytest.mark.parametrize("name", SHAPES)
def test_company_does_not_change_a_bit(name: str, isa: str) -> None:
    prompts = [tokens(n, n) for n in (1, 33, 70, 2, 17)]
    together = prompt_logits(model(name), prompts, 512)
    mixed = prompt_logits(model(name), prompts[::-1], 13)[::-1]
    for prompt, one, other in zip(prompts, together, mixed, strict=True):
        alone = prompt_logits(model(name), [prompt], 512)[0]
        assert same(one, alone)
        assert same(other, alone)


@pytest.mark.parametrize("name", SHAPES)
def test_threads_do_not_change_a_bit(name: str, isa: str) -> None:
    prompts = [tokens(n, n) for n in (200, 33, 70)]
    one, two = (prompt_logits(model(name, threads), prompts, 128) for threads in (1, 2))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("heads", ["one head", "many query heads"])
def test_parts_that_are_tasks_of_their_own_do_not_change_a_bit(heads: str, threads: int) -> None:
    """With one key-value head a long decode is split by parts; a prefill is not."""
    prompt = tokens(LONG, 3)
    expected = prompt_logits(model(heads, 1), [prompt], LONG)[0]
    stepper = Stepper(model(heads, threads))
    stepper.step([Part(0, prompt[:-3])])
    for row in (-3, -2, -1):
        logits = stepper.step([Part(0, [prompt[row]])]).logits[0]
        assert same(logits, expected[row])


PLAIN_HEADS = ["plain", "bf16", "window", "windows", "softcap", "no groups"]
PAGED_HEADS = ["odd pages", "large pages"]
CODED_HEADS = ["int8", "int4", "int8 and int4", "int4 and int8"]


@pytest.mark.parametrize("name", [*PLAIN_HEADS, *PAGED_HEADS, *CODED_HEADS])
def test_heads_taken_in_turns_have_the_bits_of_heads_alone(name: str, isa: str) -> None:
    """Rows of few queries take all heads in turns where there are many rows, or parts; a prompt's
    rows, and a short row alone, take each by itself. The draft trees end in another block."""
    prompts = [tokens(n, n) for n in (LONG, 1022, 200, 64, 33, 1)]
    alone = [prompt_logits(model(name, 1), [prompt], LONG)[0] for prompt in prompts]
    for threads in (1, 2):
        shape = SHAPES[name]
        pages = 3 * -(-LONG // shape.page_tokens) + 40
        stepper = Stepper(on(cpu(threads), replace(shape, pages=pages)))
        for number, prompt in enumerate(prompts[:-1]):
            stepper.step([Part(number, prompt[:-2])])
        for row in (-2, -1):
            parts = [Part(number, [prompt[row]]) for number, prompt in enumerate(prompts[:-1])]
            if row == -1:
                parts.append(Part(len(prompts) - 1, prompts[-1]))
            for found, expected in zip(stepper.step(parts).logits, alone, strict=False):
                assert same(found, expected[row])
        tree = stepper.step([Part(i, [11, 12], [-1, -1]) for i in range(len(prompts))]).logits
        for number, found in enumerate(tree):
            chain = [*prompts[number // 2], 11 + number % 2]
            assert same(found, prompt_logits(model(name, 1), [chain], LONG + 1)[0][-1])


TREE_TOKENS = [11, 12, 13, 14, 15, 16, 17]
TREE_PARENTS = [-1, 0, 0, 1, 2, 3, -1]


def path_to(node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, TREE_TOKENS[node])
        node = TREE_PARENTS[node]
    return path


@pytest.mark.parametrize("length", [1, 60, 64, 126, 1021])
@pytest.mark.parametrize(
    "name", ["plain", "bf16", "window", "windows", "softcap", "odd pages", *CHUNKED]
)
def test_a_node_of_a_tree_has_the_bits_of_its_path(name: str, length: int, isa: str) -> None:
    prompt = tokens(length, 4)
    stepper = Stepper(model(name))
    stepper.step([Part(0, prompt), Part(1, prompt[:9])])
    tree = stepper.step([Part(1, [5, 6]), Part(0, TREE_TOKENS, TREE_PARENTS)]).logits[2:]
    for node in range(len(TREE_TOKENS)):
        path = path_to(node)
        chain = Stepper(model(name))
        chain.step([Part(0, prompt)])
        for token in path:
            logits = chain.step([Part(0, [token])]).logits
        assert same(tree[node], logits[0]), f"node {node}"


@pytest.mark.parametrize("kind", ["scores", "score_sums"])
def test_scores_do_not_depend_on_company(kind: str) -> None:
    prompt = tokens(LONG, 6)
    found = []
    for others in ([], [Part(1, tokens(50, 7))]):
        stepper = Stepper(model("bf16"))
        stepper.step([Part(0, prompt[:-1])])
        row = {0: np.array([sum(len(o.tokens) for o in others)], np.int32)}
        output = stepper.step([*others, Part(0, prompt[-1:])], **{f"wants_{kind}": row})
        found.append(getattr(output, kind)[0][0])
    assert found[0].shape == ((LONG,) if kind == "score_sums" else (SHAPES["bf16"].kv_heads, LONG))
    assert same(found[0], found[1])


@pytest.mark.parametrize("chunks", [[LONG], [40, 1, LONG - 41]], ids=str)
def test_totals_are_the_sums_of_scores_in_any_order(chunks: list[int]) -> None:
    prompt, shape = tokens(LONG, 6), SHAPES["bf16"]
    stepper, total = Stepper(model("bf16")), np.zeros((shape.kv_heads, LONG))
    scores, start = np.zeros((shape.kv_heads, LONG)), 0
    for count in chunks:
        rows = np.arange(count, dtype=np.int32)
        sets = RowSets(
            np.concatenate((rows, rows[::-1])), np.array([0, count, 2 * count], np.int32)
        )
        part = Part(0, prompt[start : start + count])
        output = stepper.step([part], wants_scores={0: rows}, wants_score_totals={0: sets})
        start += count
        one, other = output.score_totals[0]
        assert one.dtype == np.float64
        assert same(one, other)
        total[:, :start] += one
        for row in output.scores[0]:
            scores[:, : row.shape[1]] += np.rint(row.astype(np.float64) * 2.0**32) / 2.0**32
    assert np.array_equal(total, scores)


def test_state_written_back_elsewhere_gives_the_same_bits() -> None:
    """Export and import between pools of other page sizes: slots are not part of the result."""
    prompt = tokens(70, 8)
    expected = prompt_logits(model("large pages"), [prompt], 512)[0]
    shape = replace(SHAPES["large pages"], page_tokens=16, pages=64)
    backend = model("plain").backend
    assert same(prompt_logits(on(backend, shape), [prompt], 512)[0], expected)


def encoder(name: str, threads: int = 2) -> Bound:
    from ockham.kernels.cpu import CpuBackend

    shape = ENCODERS[name]
    return on(CpuBackend(threads), replace(shape, pages=-(-2 * LONG // shape.page_tokens) + 99))


def encoded(model: Bound, texts: list[list[int]]) -> list[np.ndarray]:
    """Every row's logits of whole texts in one step: (T, V) each."""
    stepper = Stepper(model)
    logits = stepper.step([Part(i, text) for i, text in enumerate(texts)]).logits
    return np.split(logits, np.cumsum([len(text) for text in texts])[:-1])


@pytest.mark.parametrize("name", ENCODERS)
def test_company_does_not_change_a_bit_of_an_encoder(name: str, isa: str) -> None:
    texts = [tokens(n, n) for n in (1, 33, 70, 2, 17, 64, 130)]
    together = encoded(encoder(name), texts)
    turned = encoded(encoder(name, 1), texts[::-1])[::-1]
    for text, one, other in zip(texts, together, turned, strict=True):
        alone = encoded(encoder(name, 5), [text])[0]
        assert same(one, alone)
        assert same(other, alone)


@pytest.mark.parametrize("name", ENCODERS)
def test_company_does_not_change_a_bit_of_a_long_text(name: str) -> None:
    text = tokens(LONG, 9)
    alone = encoded(encoder(name, 1), [text])[0]
    assert same(encoded(encoder(name, 5), [tokens(9, 1), text, tokens(40, 2)])[1], alone)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_what_the_reference_backend_computes(name: str, isa: str) -> None:
    shape = replace(ENCODERS[name], state="float32", weights="fp32", pages=400)
    texts = [tokens(n, n) for n in (1, 33, 200)]
    found = encoded(on(encoder(name).backend, shape), texts)
    expected = encoded(on(ReferenceBackend(), shape), texts)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < 1e-4 * np.abs(other).max()


def test_a_row_of_an_encoder_sees_what_follows_it() -> None:
    text = tokens(20, 3)
    changed = [*text[:-1], text[-1] ^ 1]
    near, far = (encoded(encoder(name), [text])[0] for name in ("encoder", "windows"))
    other = encoded(encoder("encoder"), [changed])[0]
    assert not same(near[0], other[0])
    shape = replace(ENCODERS["windows"], windows=(5,), layers=1)
    one, two = (encoded(on(encoder("windows").backend, shape), [t])[0] for t in (text, changed))
    assert same(one[:15], two[:15])
    assert not any(same(one[row], two[row]) for row in range(15, 20))
    assert not same(near, far)


def test_a_position_beyond_those_that_were_learned_is_refused() -> None:
    stepper = Stepper(encoder("encoder"))
    step = stepper.build([Part(0, [1, 2, 3])])
    step.positions[2] = 2 * ENCODERS["encoder"].positions
    with pytest.raises(ValueError, match="row 2 has the position 2800 of 2800"):
        stepper.executor.begin(step)
