"""Measurements of speed, memory and arithmetic, all in one place so that every model is measured alike."""
