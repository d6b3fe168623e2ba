"""What runs a captioner's network once it is trained: torch for a checkpoint, ONNX Runtime or OpenVINO for an export.

Nothing here imports torch but ``eager``: an export starts without it.
"""
