"""Weights in 3 bits: codes of levels that each row has for itself."""

from __future__ import annotations

from typing import ClassVar

from ockham.core.registry import register
from ockham.weights.codebook import Codebook


@register("format", "codebook3", exact=False, paper="159")
class Codebook3(Codebook):
    """Weights in 8 levels of their own for each row, a few weights apart; inputs in int8 by 128.

    SqueezeLLM (arXiv:2306.07629): levels are found by weighted k-means, and 0.5% of the weights,
    those that matter most, are kept sparsely beside the codes. Levels are 7-bit integers under one
    float for each row, so that a product looks them up with one shuffle of bytes and sums integers;
    what stands apart is in the same units. Takes 3 bits a weight, 0.16 for what stands apart, and
    96 bits a row.

    Its levels are worth much only when they are fitted to a text
    (`ockham convert --calibration FILE`): a weight then has as much part in them as the second
    moment of its input, where the paper takes the squared gradient.
    """

    name: ClassVar[str] = "codebook3"
    bits: ClassVar[int] = 3
