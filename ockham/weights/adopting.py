"""What formats share that take over quantised matrices: rows, checked and regrouped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ockham.core.errors import ModelError
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.seams import Values
from ockham.weights.by_rows import misfit, regrouped


def adopted(
    blocks: Iterable[QuantisedRows], shape: tuple[int, int], encoding: Encoding, multiple: int
) -> Iterator[QuantisedRows]:
    """Blocks of quantised rows regrouped to a multiple of so many.

    What pads the last are weights of zero. Raises ModelError as `QuantisedFormat.adopt` says.
    """
    middle = 1 << (encoding.bits - 1)

    def checked() -> Iterator[Values]:
        done = 0
        for block in blocks:
            stop = done + len(block)
            if block.codes.shape[1] != shape[1] or stop > shape[0]:
                raise misfit(block.codes.shape, done, shape)
            fault = block.fault(encoding)
            if fault:
                raise ModelError(f"{fault} (rows {done} to {stop - 1}).")
            yield {"codes": block.codes, "scales": block.scales, "zeros": block.zeros}
            done = stop
        if done != shape[0]:
            raise ModelError(f"only {done} of {shape[0]} rows were found.")

    def padded(rows: Values, missing: int) -> Values:
        values = {"codes": middle, "scales": 0, "zeros": middle}
        return {
            name: np.pad(array, ((0, missing), (0, 0)), constant_values=values[name])
            for name, array in rows.items()
        }

    for rows in regrouped(checked(), multiple, padded):
        codes, zeros = rows["codes"].view(np.uint8), rows["zeros"].view(np.uint8)
        yield QuantisedRows(codes, rows["scales"], zeros)
