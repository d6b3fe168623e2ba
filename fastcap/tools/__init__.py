"""Benchmarks, and the W&B dashboard."""
