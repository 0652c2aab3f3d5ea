"""Sums of low rank beside rounded weights, as they are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.core.arrays import Floats
from ockham.core.seams import Linear
from ockham.kernels.corrected import CorrectedLinear
from ockham.model.packed.layout import key_of
from ockham.model.rewriting.anatomy import NamedMatrix
from ockham.model.rewriting.model import RewrittenModel
from ockham.training.decoder import Decoder
from ockham.training.student import Learner, divergence
from ockham.weights.stacked import parts_of


@dataclass(frozen=True)
class _Sum:
    """B A, added to the rows of a matrix from `first` on; `a` (r, K) and `b` (N, r)."""

    first: int
    a: nn.Parameter
    b: nn.Parameter
    held: CorrectedLinear

    @torch.no_grad()
    def take(self) -> None:
        """The factors as they are held: of a row of A and its column of B, one is as large as the
        other, so that one rate suits both."""
        a, b, factors = (torch.from_numpy(each.astype(np.float32)) for each in self.held.sum())
        a = a * factors[:, None]
        sizes = a.norm(dim=1), b.norm(dim=0)
        share = torch.where(sizes[1] > 0, (sizes[0] / sizes[1].clamp_min(1e-30)).sqrt(), 1.0)
        share = torch.where(share > 0, share, 1.0)
        self.a.copy_(a / share[:, None])
        self.b.copy_(b * share)

    def put(self) -> None:
        """Hold the factors, in int8, as they are now."""
        self.held.set_sum(self.a.detach().numpy(), self.b.detach().numpy())


class RoundedDecoder(Decoder):
    """A model whose matrices have the values that they were rounded to, frozen, beside sums of low
    rank that are learned. Inputs of products are not rounded here."""

    def __init__(self, model: RewrittenModel, matrices: Mapping[str, Linear]) -> None:
        """`matrices` are those of the model as they are packed, by key. Raises as `Decoder`."""
        super().__init__(model)
        self.requires_grad_(False)
        self.adds = True
        self._sums: dict[str, list[_Sum]] = {}
        for op in self._ops:
            for matrix in op.matrices().values():
                assert isinstance(matrix, NamedMatrix)
                key = key_of(matrix.parts)
                if key in matrices:
                    self._take(matrix, matrices[key], key)

    def sums(self) -> Iterator[_Sum]:
        for own in self._sums.values():
            yield from own

    @torch.no_grad()
    def _take(self, matrix: NamedMatrix, linear: Linear, key: str) -> None:
        values, first = [], 0
        self._sums[key] = []
        for piece in parts_of(linear):
            base: Linear = piece
            if isinstance(piece, CorrectedLinear):
                rank, rows, columns = piece.rank, piece.out_features, piece.in_features
                a, b = (
                    nn.Parameter(torch.empty(rank, columns)),
                    nn.Parameter(torch.empty(rows, rank)),
                )
                self._sums[key].append(_Sum(first, a, b, piece))
                self._sums[key][-1].take()
                base = piece.base
            values.append(base.rows(np.arange(base.out_features, dtype=np.int32)))
            first += base.out_features
        rounded: Floats = np.concatenate(values)
        first = 0
        for part in matrix.parts:
            held = self.tensor(part.name).reshape(-1, part.shape[-1])[part.start : part.stop]
            held.copy_(torch.from_numpy(rounded[first : first + len(held)]))
            first += len(held)

    def _matrix(self, linear: Linear | None) -> Tensor:
        weights = super()._matrix(linear)
        assert isinstance(linear, NamedMatrix)
        for each in self._sums[key_of(linear.parts)] if self.adds else ():
            added = each.b @ each.a
            if len(added) < len(weights):
                added = F.pad(added, (0, 0, each.first, len(weights) - each.first - len(added)))
            weights = weights + added
        return weights


class Compensated(Learner):
    """Sums that learn to make a rounded model say what the model that it was made from says: the
    mean KL divergence of its predictions (INT2.1, Chai et al. 2023, arXiv:2306.08162)."""

    rate = 1e-3
    text_share = 1.0

    def __init__(self, rounded: RoundedDecoder, teacher: Decoder) -> None:
        super().__init__()
        # In lists, as they are frozen and no part of the state.
        self._rounded, self._teacher = [rounded], [teacher.requires_grad_(False)]
        self.factors = nn.ParameterList(
            factor for each in rounded.sums() for factor in (each.a, each.b)
        )

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        return self._loss(ids[:, :-1])

    @torch.no_grad()
    def divergence(self, ids: Tensor, adds: bool = True) -> float:
        """The mean KL(teacher || rounded) of rows of token ids (B, T + 1), in nats, with the sums
        or without."""
        self._rounded[0].adds = adds
        found = sum(self._loss(row[None, :-1]).item() for row in ids) / len(ids)
        self._rounded[0].adds = True
        return found

    def write(self) -> None:
        """Round the factors to int8 in the matrices that hold them, and take them from there."""
        for each in self._rounded[0].sums():
            each.put()
            each.take()

    def _loss(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self._teacher[0](ids)
        return divergence(expected, self._rounded[0](ids))
