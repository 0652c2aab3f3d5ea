"""How linear layers' weights are stored and multiplied: one format a file.

A new format is one file here that registers a `Format` (core/seams/weights.py). Its class says what
the engine must know of it: how it lies in a file, which dtype picks it, how it may be named. The
reference backend multiplies it at once; the native core as soon as it has a `Kind` of the same
name, in capitals.
"""
