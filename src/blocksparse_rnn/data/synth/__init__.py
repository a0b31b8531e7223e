"""A corpus of synthetic speech: sentences, voices, noise, built once and kept."""
