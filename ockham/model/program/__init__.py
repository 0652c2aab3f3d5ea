"""What a model computes: architectures as data, a model as its config.json describes it, and the
compiler to programs."""
