"""Audio to text and back without training: features, alphabet, normalizer, greedy and beam decoding, error rates.

Imports nothing of this project but the modules of its root.
"""
