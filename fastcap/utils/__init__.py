"""Helpers that know nothing of captions: random numbers, processes, files, provenance."""
