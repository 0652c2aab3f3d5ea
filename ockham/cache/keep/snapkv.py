"""Keep the cells that the end of the prompt looks at."""

from __future__ import annotations

from typing import ClassVar

from ockham.cache.keep import budgets
from ockham.cache.keep.budgets import Budget, BudgetAsk, BudgetKeeping, BudgetOptions
from ockham.cache.keep.pooling import Pooling, pooled, wrong_kernel
from ockham.core.arrays import Doubles, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import KeptText


class SnapKVOptions(BudgetOptions):
    """A budget, and what decides: the attention of the latest `window` rows before cells are
    dropped. The sums over those are pooled, as `pooling` says, over `kernel` neighbouring cells, so
    that what stands beside a cell that is looked at stays with it."""

    window: int = 32
    kernel: int = 5
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := wrong_kernel(self.kernel):
            raise ConfigError(wrong)


class SnapKVAsk(BudgetAsk, kw_only=True, frozen=True):
    """The same, of one request."""

    window: int | None = None
    kernel: int | None = None
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel is not None and (wrong := wrong_kernel(self.kernel)):
            raise InvalidRequest(wrong, "kernel")


@register("keep", "snapkv", exact=False, books=("snapkv",), paper="341")
class SnapKV:
    """The cells stay that the last rows of the prompt attend to most, each head's own.

    A question at the end of a prompt looks at what its answer will need (SnapKV, Li et al. 2024,
    arXiv:2404.14469). What another question would need is gone after that. The sums over a
    key-value head are over the query heads that read it. Approximate; state is private to the
    request, since the choice depends on the prompt's last rows. Measured by `ockham techniques
    measure snapkv`.
    """

    name: ClassVar[str] = "snapkv"
    trial: ClassVar[dict[str, object]] = {"budget": 12, "sinks": 2, "window": 4, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[SnapKVOptions]] = SnapKVOptions
    Ask: ClassVar[type[SnapKVAsk]] = SnapKVAsk

    def __init__(self, options: SnapKVOptions) -> None:
        self._options = options

    def open(self, ask: SnapKVAsk, text: KeptText) -> Snapped:
        """See `Keep`."""
        given = budgets.settings(self._options, ask)
        budget = Budget.of(given, ask, text, given["window"])
        return Snapped(self.name, budget, text, given["kernel"], given["pooling"])


class Snapped(BudgetKeeping):
    """The cells of one sequence that the rows before a border look at."""

    def __init__(
        self, name: str, budget: Budget, text: KeptText, kernel: int, pooling: Pooling
    ) -> None:
        super().__init__(name, budget, text)
        self._kernel, self._pooling = kernel, pooling

    def worth(self, group: int, places: Ints, tokens: int) -> Doubles:
        return pooled(self.total(group, 0, places.shape[-1]), self._kernel, self._pooling)
