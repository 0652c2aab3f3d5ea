"""What models answer that give vectors, classes or scores: embeddings, ranking, classification.

The shapes are those of OpenAI, vLLM, Jina, Cohere, Text Embeddings Inference and llama-server.
"""

from __future__ import annotations

from starlette.routing import Route

from ockham.api.server.pooled.classes import classify, pool
from ockham.api.server.pooled.embeddings import create_embeddings, embed_content, embed_inputs
from ockham.api.server.pooled.ranking import rerank, rerank_v2, score

__all__ = ["ALIASES", "ROUTES"]

ROUTES = (
    Route("/v1/embeddings", create_embeddings, methods=["POST"]),
    Route("/v1/rerank", rerank, methods=["POST"]),
    Route("/v2/rerank", rerank_v2, methods=["POST"]),
    Route("/v1/score", score, methods=["POST"]),
    Route("/v1/classify", classify, methods=["POST"]),
    Route("/pooling", pool, methods=["POST"]),
    Route("/embed", embed_inputs, methods=["POST"]),
    Route("/embedding", embed_content, methods=["POST"]),
)
ALIASES = (
    Route("/embeddings", create_embeddings, methods=["POST"]),
    Route("/rerank", rerank, methods=["POST"]),
    Route("/reranking", rerank, methods=["POST"]),
    Route("/score", score, methods=["POST"]),
    Route("/classify", classify, methods=["POST"]),
)
"""For clients whose base URL was given without /v1."""
