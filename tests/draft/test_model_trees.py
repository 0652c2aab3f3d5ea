"""Trees of a draft model: what is drafted, what it costs, and what is kept of it."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from ockham.core.errors import ConfigError
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Foreseen, Noise, Rows, Target, Wish
from ockham.draft.draft_model import DraftModel, DraftModelOptions
from ockham.draft.modelled.drafting import LIKELY
from ockham.draft.modelled.growing import Growing, kind_of
from ockham.draft.modelled.row_cost import RowCost
from ockham.draft.modelled.stream import ROOT, ModelStream
from ockham.engine.runner.small_model import SmallModel
from ockham.kernels.native import core
from ockham.kernels.sampling import Draw
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY = 97
PROMPT = [(7 * i) % VOCABULARY for i in range(40)]
KINDS = len(DraftModel.kinds)


@pytest.fixture(scope="module", params=["full", "window"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    make = tiny_llama if request.param == "full" else tiny_mistral
    checkpoint = make(tmp_path_factory.mktemp("draft"), vocab_size=VOCABULARY)
    target = Target(vocabulary=VOCABULARY, max_model_len=200, sequences=4, cells=800)
    return SmallModel(str(checkpoint), target)


def drafter_of(small: SmallModel, branches: int = 4) -> DraftModel:
    drafter = DraftModel(DraftModelOptions(model="x", branches=branches))
    drafter.model = small
    return drafter


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def rows_of(small: SmallModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each step from now on, its rows."""
    counted: list[int] = []
    run = small.run

    def counting(chunks: list[Rows], likely: int, hidden: bool = False) -> Foreseen:
        counted.append(sum(len(chunk.tokens) for chunk in chunks))
        return run(chunks, likely, hidden)

    monkeypatch.setattr(small, "run", counting)
    return counted


def after(small: SmallModel, tokens: list[int]) -> np.ndarray:
    """The logits after a text that is read from its beginning."""
    stream = ModelStream(small)
    stream.extend(ids(tokens))
    assert stream.reserve(len(tokens))
    foreseen = small.run([Rows(stream.view, stream.take(len(tokens)))], LIKELY)
    stream.close()
    return foreseen.logits[0]


@pytest.mark.skipif(core is None, reason="the reference backend promises no bits")
def test_a_branch_that_was_taken_is_not_computed_again(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter, stream = drafter_of(small), ModelStream(small)
    stream.extend(ids(PROMPT))
    wish = Wish(12, [0.6] * KINDS, None)  # what is not likelier than its sister is drafted too
    (draft,) = drafter.propose_all([stream], [wish], 0.0, np.inf)
    assert draft is not None
    continued = [i for i in range(len(draft.tokens)) if i in draft.parents]
    last = next(i for i in reversed(continued) if draft.parents[i] != i - 1)  # not of the chain
    path = [last]
    while draft.parents[path[0]] != ROOT:
        path.insert(0, draft.parents[path[0]])
    said = [draft.tokens[i] for i in path]
    counted = rows_of(small, monkeypatch)
    stream.extend(ids([*said, 3]))
    stream.settle()
    assert stream.unread == [3]
    assert stream.reserve(1)
    foreseen = small.run([Rows(stream.view, stream.take(1))], LIKELY)
    assert counted == [1]
    np.testing.assert_array_equal(foreseen.logits[0], after(small, [*PROMPT, *said, 3]))
    stream.close()


def test_a_branch_says_what_a_chain_says(small: SmallModel) -> None:
    """Rows of a tree see their ancestors and nothing of the other branches."""
    stream = ModelStream(small)
    stream.extend(ids(PROMPT))
    stream.settle()
    assert stream.reserve(len(PROMPT))
    small.run([Rows(stream.view, stream.take(len(PROMPT)))], LIKELY)
    assert stream.reserve(3)
    first = len(PROMPT)
    tree = Rows(stream.view, [5, 6, 7], first, [[], [], [first]])
    foreseen = small.run([tree], LIKELY)
    for row, text in enumerate([[5], [6], [5, 7]]):
        expected = after(small, [*PROMPT, *text])
        np.testing.assert_allclose(foreseen.logits[row], expected, rtol=1e-4, atol=1e-4)
    stream.close()


def test_sampled_branches_are_drawn_without_replacement(small: SmallModel) -> None:
    """As if each were drawn with the same noise after those before it were forbidden."""
    drafter, stream = drafter_of(small, branches=4), ModelStream(small)
    params = SamplingParams(temperature=0.8, seed=3)
    for seed in range(5):
        logits = np.full((1, VOCABULARY), -60.0, np.float32)
        rng = np.random.default_rng(seed)
        likely = rng.permutation(VOCABULARY)[:LIKELY]
        logits[0, likely] = rng.standard_normal(LIKELY)
        each = Growing(stream, Wish(4, [1.0] * KINDS, Noise(params, seed, 1)))
        foreseen = small_foreseen(logits)
        drafter._branch([(each, ROOT)], foreseen, 0.0)
        drawn: list[int] = []
        while len(drawn) < 4:
            draw = Draw(0, params, seed, 1, stream.position, forbidden=tuple(drawn))
            (token,) = small.sample(logits, [draw])
            assert token is not None
            drawn.append(token)
        assert each.tokens == drawn
    stream.close()


def small_foreseen(logits: np.ndarray) -> Foreseen:
    order = np.argsort(-logits, axis=1, kind="stable")[:, :LIKELY].astype(np.int32)
    return Foreseen(logits, order)


def test_the_likeliest_part_of_the_whole_tree_is_drafted(small: SmallModel) -> None:
    """Against a plain twin that grows every branch before it chooses."""
    accepted = [0.1 + 0.05 * kind for kind in range(9)] + [0.02 * kind for kind in range(6)]
    most, branches = 6, 3
    drafter, stream = drafter_of(small, branches), ModelStream(small)
    stream.extend(ids(PROMPT))
    (draft,) = drafter.propose_all([stream], [Wish(most, accepted, None)], 0.0, np.inf)
    assert draft is not None
    stream.close()
    every: list[tuple[float, tuple[int, ...]]] = []
    level: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    for _ in range(4):
        grown = []
        for chance, path in level:
            scores = after(small, [*PROMPT, *path]).astype(np.float64)
            likely = np.argsort(-scores, kind="stable")[:LIKELY]
            weights = np.exp(scores[likely] - scores[likely[0]])
            for rank in range(branches):
                share = weights[rank] / weights.sum()
                kind = kind_of(rank, share)
                grown.append((chance * accepted[kind], (*path, int(likely[rank]))))
        every += grown
        level = grown
    best = sorted(every, key=lambda item: -item[0])[:most]
    assert min(chance for chance, _ in best) > max(chance for chance, _ in level)
    paths = []
    for i, token in enumerate(draft.tokens):
        above = () if draft.parents[i] == ROOT else paths[draft.parents[i]]
        paths.append((*above, token))
    assert set(paths) == {path for _, path in best}


def test_what_costs_more_than_it_brings_is_not_computed(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter, stream = drafter_of(small), ModelStream(small)
    stream.extend(ids(PROMPT))
    counted = rows_of(small, monkeypatch)
    wish = Wish(8, [0.4] * KINDS, None)
    for _ in range(40):
        drafter.propose_all([stream], [wish], 0.1, token_s=1e-9)
    assert 1 <= len(counted) <= 8  # it is tried again, ever more rarely
    (draft,) = drafter.propose_all([stream], [wish], 0.1, token_s=1e3)
    assert draft is not None
    assert max(draft.parents) > ROOT
    stream.close()


def test_the_cost_of_rows_is_learned() -> None:
    cost, rng = RowCost(), Random(0)
    assert cost.of(5) == 0.0
    for _ in range(300):
        rows = rng.randint(1, 12)
        cost.learn(rows, (3.0 + 0.2 * rows) * rng.uniform(0.95, 1.05))
    for rows in (1, 6, 12):
        assert cost.of(rows) == pytest.approx(3.0 + 0.2 * rows, rel=0.05)


def test_branches_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"branches must lie in \[1, 8\], got 9"):
        DraftModelOptions(branches=9)
