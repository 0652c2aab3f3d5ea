"""What clients of llama-server ask for that OpenAI's API does not have: filling in, and facts."""

from __future__ import annotations

from starlette.routing import Route

from ockham.api.server.llama_server.infill import infill
from ockham.api.server.llama_server.props import apply_template, props, slots

__all__ = ["ROUTES"]

ROUTES = (
    Route("/infill", infill, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
    Route("/props", props),
    Route("/slots", slots),
)
