"""`python -m ockham` is `ockham`."""

from ockham.cli.main import main

main()
