"""The wide start computes what the old model computes, and copies what was said before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from recipes.lab.induction import OLD, WIDE, Circuit, widen
from recipes.lab.model import LabModel
from recipes.lab.train import load_start


def old_model() -> LabModel:
    """An untrained one whose embeddings and final states are as large as a trained one's."""
    model = LabModel(OLD, seed=5)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.copy_(F.normalize(embedding) * 4.7)
    return model


@pytest.fixture(scope="module")
def old() -> LabModel:
    return old_model()


def wide(old: LabModel, circuit: Circuit) -> LabModel:
    model = LabModel(WIDE)
    model.load_state_dict(widen(dict(old.state_dict()), 1, circuit))
    return model


def draw(*shape: int) -> Tensor:
    return torch.randint(32, OLD.vocab_size, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_without_copying_it_computes_what_the_old_model_does(old: LabModel) -> None:
    ids = draw(2, 60)
    ours, theirs = (
        F.log_softmax(m(ids), -1) for m in (wide(old, Circuit(copying=0.0, share=0.02)), old)
    )
    assert (ours - theirs).abs().mean() < 0.03 * theirs.std()


@torch.no_grad()
@pytest.mark.parametrize("run", [30, 300])
def test_it_repeats_a_run_of_random_tokens(old: LabModel, run: int) -> None:
    ids = draw(1, run).repeat(1, 2)
    final_norm = 4.7 / OLD.hidden**0.5  # an untrained model adds next to nothing
    copier = wide(old, Circuit(final_norm=final_norm, copying=200.0))
    counted = slice(run + 4, 2 * run - 1)  # once four tokens have been seen again
    repeated = copier(ids)[:, counted].argmax(-1) == ids[:, run + 5 :]
    assert repeated.float().mean() > 0.9
    before = old(ids)[:, counted].argmax(-1) == ids[:, run + 5 :]
    assert before.float().mean() < 0.1


def test_a_start_is_checked_and_widened(old: LabModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(dict(old.state_dict()), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    same, wider = LabModel(OLD), LabModel(WIDE)
    load_start(same, sha256, path, seed=1)
    load_start(wider, sha256, path, seed=1)
    ids = draw(1, 8)
    assert torch.equal(same(ids), old(ids))
    assert torch.equal(wider(ids), wide(old, Circuit())(ids))
    with pytest.raises(ValueError, match="the plan starts from"):
        load_start(same, "0" * 64, path, seed=1)
    with pytest.raises(ValueError, match="--start"):
        load_start(same, sha256, None, seed=1)
