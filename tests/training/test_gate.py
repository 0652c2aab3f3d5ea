"""`ockham train gate`: routers that choose how many neurons of a feed-forward a row runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.model.checkpoint.gate_files import read_routers
from ockham.model.checkpoint.opening import open_model
from ockham.model.rewriting.model import RewrittenModel
from ockham.training.gate import GateSettings
from tests.helpers.tiny import tiny_llama

torch = pytest.importorskip("torch")

SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "tokenizer": True}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(200))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def quiet(line: str) -> None:
    """Nobody listens."""


def test_routers_keep_the_budget_and_choose_when_served_as_when_trained(
    tmp_path: Path, text: Path
) -> None:
    from ockham.training.decoder import Decoder
    from ockham.training.routing import Routed

    source, out = tiny_llama(tmp_path / "model", **SIZES), tmp_path / "out"
    args = ["train", "gate", str(source), str(out), "--widths", "0,0.25,1", "--budget", "0.6"]
    args += ["--data", str(text), "--tokens", "16384", "--context", "32", "--json"]
    result = CliRunner().invoke(cli, [*args, "--batch-tokens", "128", "--rate", "0.02"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert abs(scores["share"] - 0.6) < 0.25
    assert scores["kl"] < scores["kl_of_widths"]["0"]
    assert scores["kl_of_widths"]["1"] == pytest.approx(0.0, abs=1e-4)
    routers = read_routers(out)
    assert routers.widths.tolist() == [[0, 16, 64]] * 2
    assert routers.trained["share"] == scores["share"]

    decoder = Decoder(RewrittenModel(open_model(source), quiet))
    model = Routed(decoder, (0.0, 0.25, 1.0), 0.6)
    model.weights.data = torch.from_numpy(routers.weights)
    model.biases.data = torch.from_numpy(routers.biases)
    tokens = np.random.default_rng(3).integers(0, 97, 31).tolist()
    share = model.measured(torch.tensor([tokens]))[1]
    settings = {"speculative_config": "none", "dtype": "float32", "reuse": "none"}
    engine = Engine(
        EngineConfig(model=str(source), gate=f"adaptive_width:router={out}", **settings)
    )
    bill = _bill(engine, tokens[:-1], {"gate/adaptive_width": True})
    whole = _bill(engine, tokens[:-1], {"gate/whole": True})
    inner = sum(engine.cost.only((layer, "feed_forward")).linear_flops for layer in (0, 1))
    assert whole.flops - bill.flops == pytest.approx((1 - share) * inner * 30, rel=0.02)


def _bill(engine: Engine, prompt: list[int], asks: dict[str, object]):  # type: ignore[no-untyped-def]
    engine.take(
        Request(
            request_id="0",
            prompt_token_ids=prompt,
            params=SamplingParams(temperature=0.0, max_tokens=1),
            detokenize=False,
            asks=make_asks(asks),
        )
    )
    while True:
        for delta in engine.step():
            if delta.ledger is not None:
                return delta.ledger


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    from ockham.training.decoder import Decoder
    from ockham.training.routing import Routed

    decoder = Decoder(RewrittenModel(open_model(tiny_llama(tmp_path / "m", **SIZES)), quiet))
    model = Routed(decoder, (0.5, 1.0), 0.7)
    assert [name for name, _ in model.named_parameters()] == ["weights", "biases"]
    ids = torch.from_numpy(np.random.default_rng(3).integers(0, 97, (2, 20)))
    with torch.no_grad():
        for choice, keep in enumerate((0.5, 1.0)):
            kl = model.measured(ids, choice)[0]
            expected = decoder(ids[:, :-1]).log_softmax(-1)
            found = decoder(ids[:, :-1], keep, 16).log_softmax(-1)
            own = (expected.exp() * (expected - found)).sum(-1).mean().item()
            assert kl == pytest.approx(own, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"widths": (0.5,)}, "at least two shares"),
        ({"widths": (1.0, 0.5)}, "ascending"),
        ({"widths": (0.5, 1.5)}, "from 0 to 1"),
        ({"budget": 1.0}, "between the smallest and the largest width"),
    ],
    ids=["one", "order", "above 1", "budget"],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, given: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        GateSettings("lab-nested", tmp_path / "out", **given)  # type: ignore[arg-type]
