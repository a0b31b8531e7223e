"""From corpora to batches: manifests, LibriSpeech, shards, synthetic speech, augmentation, the data module.

May import speech and the modules of the root.
"""
