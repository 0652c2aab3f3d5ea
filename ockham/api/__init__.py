"""The faces of the engine for programs: `LLM`, its asynchronous twin, and the OpenAI server."""
