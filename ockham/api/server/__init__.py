"""The OpenAI API over an engine in its own process."""
