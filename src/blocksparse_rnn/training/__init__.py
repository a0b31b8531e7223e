"""Everything around fit(): the training from settings to result, the recogniser, optimizers, checkpoints, loggers.

May import config and what lies below it.
"""
