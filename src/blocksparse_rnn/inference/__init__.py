"""Trained recognisers in use: transcribing files (`transcriber`) and streams (`stream`), exporting runs (`export`).

May import training and what lies below it.
"""
