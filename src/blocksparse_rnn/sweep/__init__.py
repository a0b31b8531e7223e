"""Sweeps: the plan, the launchers `slots` (this machine) and `slurm`, the live table, the runs of a Hydra sweeper.

May import training and the packages below it.
"""
