"""A run's folder: its files, identity and checkpoints, and the other runs whose weights it uses.

May import pruning and the packages below it.
"""
