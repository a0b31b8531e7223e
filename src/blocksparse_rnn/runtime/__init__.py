"""The block-sparse engine: matrices (`bsr`), layers and networks on CPU and GPU, the exported file.

May import pruning, models and what lies below them.
"""
