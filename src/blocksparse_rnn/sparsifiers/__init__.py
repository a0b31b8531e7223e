"""Callbacks that make weights zero while a recogniser trains. They know matrices and blocks, never speech."""
