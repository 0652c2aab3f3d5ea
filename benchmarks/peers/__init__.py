"""Ockham beside the engines that people run on a plain CPU: see benchmarks/README.md."""
