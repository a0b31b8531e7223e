"""Sweeps: the plan, slots on this machine, SLURM, the live table, and what Hydra calls of them.

May import training and what lies below it.
"""
