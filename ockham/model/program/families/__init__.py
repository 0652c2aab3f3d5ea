"""The decoders that Ockham knows, family by family: one record each."""
