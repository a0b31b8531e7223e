"""Trained recognisers at work: transcribing files and streams, exporting runs.

May import training and what lies below it.
"""
