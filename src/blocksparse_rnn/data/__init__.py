"""Corpora, and the batches that training draws from them."""
