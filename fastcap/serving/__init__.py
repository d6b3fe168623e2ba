"""Captions from trained models: the captioner, ONNX Runtime sessions, exports, the HTTP API."""
