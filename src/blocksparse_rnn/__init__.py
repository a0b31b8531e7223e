"""Recurrent speech recognisers that are pruned in blocks while they train."""
