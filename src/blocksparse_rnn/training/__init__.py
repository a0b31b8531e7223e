"""Training from settings to result (`train`): the recogniser, its data, optimizers, checkpoints, loggers, ranks.

May import config and the packages below it.
"""
