"""The reference backend: every operation in plain NumPy, one file each.

It is the meaning of each operation, the oracle of the compiled kernels' tests, and the way to run
where nothing could be compiled. It promises no bits: BLAS sums in an order that depends on the
number of rows. It knows tensors, never models.

A file registers its function as the `twin` of an operation's class; `run.py` finds it.
"""
