"""Sparsity: blocks, prunable matrices, schedules, threshold rules, the sparsifiers, what they log and draw.

Sparsifiers know matrices and blocks, not speech. Imports only the modules of the root.
"""
