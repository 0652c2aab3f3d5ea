"""The search for the best mix of formats of one model, under a budget (`ockham compress`).

Puzzle (arXiv:2411.19146) without its training: every alternative of every tensor is scored by
putting it alone into the unquantised model, priced in bytes and seconds, and a mixed-integer
program picks one alternative for each tensor.
"""
