"""Networks alone: the Deep-Speech-2-style model, its layers, batch norm and recurrent cores.

They know nothing of sparsity or speech. May import the modules of the root only.
"""
