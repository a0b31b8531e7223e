"""The block-sparse engine: matrices in blocks, layers and networks on CPU and GPU, the exported file.

May import pruning, models and what lies below them.
"""
