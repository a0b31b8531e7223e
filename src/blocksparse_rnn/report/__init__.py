"""Finished runs compared: results, tables, plots, dashboard, W&B workspace.

May import training and what lies below it.
"""
