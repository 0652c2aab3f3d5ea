"""The operations and their backends. Kernels know tensors, never models."""
