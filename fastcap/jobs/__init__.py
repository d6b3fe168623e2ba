"""Sweeps, pretraining and the feature cache: work around a single training."""
