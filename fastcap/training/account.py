"""Whether somebody is logged in to Weights & Biases, and as whom."""

from __future__ import annotations


def has_account() -> bool:
    """Tell whether an API key is set up, by WANDB_API_KEY or ``wandb login``; asks no server."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def default_entity() -> str | None:
    """Ask the server for the account's own entity."""
    import wandb

    return wandb.Api().default_entity
