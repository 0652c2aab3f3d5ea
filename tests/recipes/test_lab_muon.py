"""Muon in float32 makes the same steps as PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.lab.muon import Float32Muon, orthogonalised


def trained(
    kind: type[torch.optim.Muon], shape: tuple[int, int], state: dict[str, Any] | None = None
) -> tuple[Tensor, torch.optim.Muon]:
    """A matrix after four steps towards another."""
    generator = torch.Generator().manual_seed(1)
    goal, start = (torch.randn(shape, generator=generator) for _ in range(2))
    matrix = torch.nn.Parameter(start)
    optimiser = kind([matrix], lr=0.02, weight_decay=0.1, momentum=0.9)
    if state is not None:
        optimiser.load_state_dict(state)
    for _ in range(4):
        optimiser.zero_grad()
        (matrix - goal).square().sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return matrix.detach(), optimiser


@pytest.mark.parametrize("shape", [(24, 24), (8, 32), (32, 8)])
def test_steps_are_those_of_torch_but_for_rounding(shape: tuple[int, int]) -> None:
    (theirs, their), (ours, our) = (trained(k, shape) for k in (torch.optim.Muon, Float32Muon))
    untouched = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert (ours - untouched).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    again, _ = trained(Float32Muon, shape, their.state_dict())
    others, _ = trained(Float32Muon, shape, our.state_dict())
    torch.testing.assert_close(again, others, rtol=0, atol=4e-3)


def test_singular_values_come_near_to_one() -> None:
    matrix = torch.randn(32, 96, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalised(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7))
    assert values.min() > 0.5
    assert values.max() < 1.5
    assert torch.linalg.svdvals(matrix).max() > 10
