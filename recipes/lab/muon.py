"""Muon whose iteration is computed in float32, for processors without arithmetic in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which rounds each update to bfloat16 and orthogonalises it there: on a
    processor that only imitates bfloat16, that takes ten times as long as all the rest of a step.
    State and settings are the same."""

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch gives it no types
        self, closure: Callable[[], Any] | None = None
    ) -> Any:
        """One step; the loss of `closure` if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean
        update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, least: float
) -> Tensor:
    """U V' of the singular value decomposition U S V' of a matrix, about: a quintic Newton-Schulz
    iteration (Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024). `least` is
    what the matrix's norm is taken for where it is smaller."""
    linear, cubic, quintic = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=least)
    for _ in range(steps):
        squares = wide @ wide.T
        factor = torch.addmm(squares, squares, squares, beta=cubic, alpha=quintic)
        wide = torch.addmm(wide, factor, wide, beta=linear)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
