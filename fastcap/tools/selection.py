"""Which systems and images a benchmark of captioners takes, from its command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcap.build import ConfigError
from fastcap.data.image_files import find_images
from fastcap.tools.captioners import write_photographs
from fastcap.tools.random_weights import DEFAULTS, TWIN_DEFAULTS, write_random, write_twin
from fastcap.tools.systems import Spec, our_specs, peer_specs

MAX_IMAGES = 8


def select(arguments: argparse.Namespace, folder: Path) -> tuple[list[Spec], list[Path]]:
    """Decide what is measured, on which images.

    Args:
        arguments: Of ``fastcap bench captioners``.
        folder: For random checkpoints and images that are made for this run.

    Returns:
        The systems, ours first, and the image files.

    Raises:
        ConfigError: If an argument is refused.
        CheckpointError: If a model cannot be used.
    """
    paths = [str(path) for path in arguments.models]
    if not paths and not arguments.random:
        raise ConfigError("name checkpoints or export folders with --models, or take --random weights")
    if arguments.seconds <= 0:
        raise ConfigError(f"--seconds {arguments.seconds} must be positive")
    tokens = arguments.num_tokens
    if tokens < 2:
        raise ConfigError(f"--num-tokens {tokens} must be at least 2")
    peers = peer_specs(arguments.peers, arguments.beams, arguments.size, tokens)
    images = choose_images(arguments.images, folder)
    if arguments.random:
        size = f"data.image_size={arguments.size}"
        paths.append(str(write_random(folder / "random.ckpt", (*DEFAULTS, size), tokens)))
    ours = our_specs(paths, arguments.beams, arguments.num_steps, not arguments.no_compile)
    twins = [] if arguments.no_twin else _random_twin(ours, folder, arguments.size, tokens)
    return [*ours, *our_specs(twins, arguments.beams, (), False), *peers], images


def _random_twin(ours: list[Spec], folder: Path, size: int, num_tokens: int) -> list[str]:
    """Write a twin of the first checkpoint, or of the default model; none where a trained one is among ours."""
    if any(spec.num_beams for spec in ours):
        return []
    path = folder / "random_autoregressive.ckpt"
    checkpoint = next((spec.path for spec in ours if Path(spec.path).is_file()), None)
    if checkpoint:
        return [str(write_twin(path, Path(checkpoint), num_tokens))]
    return [str(write_random(path, (*TWIN_DEFAULTS, f"data.image_size={size}"), num_tokens))]


def choose_images(paths: list[Path] | None, folder: Path, limit: int = MAX_IMAGES) -> list[Path]:
    """Return the first images among files and folders, or draw some.

    Raises:
        DataError: If a path does not exist or a folder holds no image.
    """
    return find_images(paths).files[:limit] if paths else write_photographs(folder)
