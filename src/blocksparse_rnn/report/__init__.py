"""Finished runs -> tables and pictures."""
