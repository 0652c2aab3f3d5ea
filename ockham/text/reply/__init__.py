"""What a model's answer says: its thoughts, its text, and the calls of tools in it.

`formats` has the families' formats as data. `parser` splits an answer that comes in pieces.
"""
