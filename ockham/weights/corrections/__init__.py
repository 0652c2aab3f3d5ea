"""Corrections: what is added to the products of rounded matrices. One module each."""
