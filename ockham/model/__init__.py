"""From the name of a model to packed weights and a program.

`files` reads a stranger's files, `program` says what a model computes, `packed` how its packed
matrices are named and kept, `checkpoint` where weights come from. The modules beside them put these
together: to load a model, to convert one, to plan its memory. The built-in models are here, too.
"""
