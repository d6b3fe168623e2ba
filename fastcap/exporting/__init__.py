"""From a checkpoint to graphs that run without torch: traced, quantised, and compared with what they came from."""
