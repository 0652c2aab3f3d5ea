"""What decoders of models of text and images have in common."""

from __future__ import annotations

VISION_TOWER = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
"""What the names of tensors begin with that belong to no text part."""
