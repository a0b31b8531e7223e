"""What a run's folder is: its files, its identity, its checkpoints, the dense run it is held against.

May import pruning and what lies below it.
"""
