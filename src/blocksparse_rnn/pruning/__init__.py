"""All of sparsity: blocks, schedules, prunable matrices, the sparsifiers, what they log and draw.

Sparsifiers know matrices and blocks, never speech, and import the modules of the root alone.
"""
