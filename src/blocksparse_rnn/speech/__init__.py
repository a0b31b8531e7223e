"""Audio to text without training: features, alphabet, normalizer, greedy and beam decoding, error rates.

May import the modules of the root.
"""
