"""What runs a step: the engine's model and its hooks, models that draft, the kept decoding."""
