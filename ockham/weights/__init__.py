"""What linear layers' weights mean: one format a file.

A new format is one file here that registers a `Format` (core/seams/weights.py). Its class says
which values are stored of a row, in NumPy, and what a product with them is; which dtype picks it,
and how it may be named. The reference backend multiplies it at once; the native core as soon as
csrc/kinds/ has a kind of the same name, which lays the values out for itself."""
