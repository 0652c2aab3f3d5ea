"""What formats share that take over quantised matrices: whole panels, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ockham.core.errors import ModelError
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.weights.panels import OUTPUTS


def adopted_panels(
    blocks: Iterable[QuantisedRows], out_features: int, in_features: int, encoding: Encoding
) -> Iterator[tuple[int, QuantisedRows]]:
    """Blocks of quantised rows regrouped to whole panels: (first panel, rows).

    Outputs that pad the last panel have weights of zero. Raises ModelError as
    `QuantisedFormat.adopt` says.
    """
    middle = 1 << (encoding.bits - 1)
    done = 0  # rows of whole panels that were given out
    held: list[QuantisedRows] = []
    for block in blocks:
        start = done + sum(map(len, held))
        _check(block, start, (out_features, in_features), encoding)
        rows = _joined([*held, block])
        whole = len(rows) // OUTPUTS * OUTPUTS
        if whole:
            yield done // OUTPUTS, _cut(rows, 0, whole)
        done += whole
        held = [_cut(rows, whole, len(rows))]
    rest = sum(map(len, held))
    if done + rest != out_features:
        raise ModelError(f"only {done + rest} of {out_features} rows were found.")
    if rest:
        missing = OUTPUTS - rest
        groups = held[0].scales.shape[1]
        padding = QuantisedRows(
            np.full((missing, in_features), middle, np.uint8),
            np.zeros((missing, groups), held[0].scales.dtype),
            np.full((missing, groups), middle, np.uint8),
        )
        yield done // OUTPUTS, _joined([*held, padding])


def _check(block: QuantisedRows, start: int, shape: tuple[int, int], encoding: Encoding) -> None:
    """Raise ModelError unless rows from `start` on fit a matrix of this shape and encoding."""
    rows, columns = shape
    stop = start + len(block)
    if block.codes.shape[1] != columns or stop > rows:
        raise ModelError(
            f"rows of shape {block.codes.shape} do not fit at row {start} of a matrix of shape "
            f"{shape}."
        )
    fault = block.fault(encoding)
    if fault:
        raise ModelError(f"{fault} (rows {start} to {stop - 1}).")


def _cut(rows: QuantisedRows, start: int, stop: int) -> QuantisedRows:
    part = slice(start, stop)
    return QuantisedRows(rows.codes[part], rows.scales[part], rows.zeros[part])


def _joined(parts: list[QuantisedRows]) -> QuantisedRows:
    if len(parts) == 1 or not len(parts[0]):
        return parts[-1]
    return QuantisedRows(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
    )
