"""FastCap: non-autoregressive image captioning, trained and served on ordinary CPUs."""

__version__ = "0.1.0"
