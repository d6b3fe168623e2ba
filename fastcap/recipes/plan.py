"""What a recipe's stages are, and the command line of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fastcap.utils.errors import UserError

_PLACE = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"\w+")
# What Hydra's grammar takes without quotes, so that a folder may stand within any override.
_PLAIN_PATH = re.compile(r"[\w./+:@%-]+")
_NOT_PASSED_ON = ("recipe", "resume", "sweep_name")


class RecipeError(UserError, ValueError):
    """A recipe that cannot be followed; the message names the stage and what is wrong."""


@dataclass(frozen=True)
class Job:
    """A kind of stage.

    Attributes:
        command: The command of ``fastcap`` that does it.
        output: The file that it ends with.
    """

    command: tuple[str, ...]
    output: str


JOBS = {
    "train": Job(("train",), "results.json"),
    "eval": Job(("eval",), "results.json"),
    "bench decoding": Job(("bench", "decoding"), "decoding.csv"),
}


@dataclass(frozen=True)
class Stage:
    """One job of a recipe.

    Attributes:
        name: Its name.
        number: Its place, from 1.
        job: Key of ``JOBS``.
        overrides: Its own, with ``{NAME}`` where an earlier stage's folder is meant.
        given: What the command line changes in it.
    """

    name: str
    number: int
    job: str
    overrides: tuple[str, ...]
    given: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of its folder, below the recipe's."""
        return f"{self.number:02d}_{self.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The earlier stages that it names."""
        return tuple(dict.fromkeys(name for text in self.overrides for name in _PLACE.findall(text)))

    @property
    def told(self) -> list[str]:
        """What it was told, wherever the recipe's folder is: the same for the same job."""
        return [self.job, *self.overrides, *self.given]

    def command(self, folders: Mapping[str, Path]) -> list[str]:
        """Return its command line, of ``fastcap``.

        Args:
            folders: Of this stage and the earlier ones, by name.
        """
        for folder in folders.values():
            if not _PLAIN_PATH.fullmatch(str(folder)):
                raise RecipeError(
                    f"{folder}: a recipe's folder may hold letters, digits and . / + : @ % _ - only: name another one "
                    "with hydra.run.dir="
                )
        changed = {_key(text) for text in self.given}
        own = [
            _PLACE.sub(lambda found: str(folders[found[1]]), text)
            for text in self.overrides
            if self.job != "train" or _key(text) not in changed
        ]
        place = folders[self.name]
        command = [*JOBS[self.job].command, *own, *self.given]
        if self.job == "bench decoding":
            return [*command, "--out", str(place)]
        if self.job == "train":
            command += ["recipe=none", "resume=last"]
        return [*command, f"hydra.run.dir={place}"]


def read_plan(recipe: DictConfig, given: Sequence[str] = ()) -> list[Stage]:
    """Read a recipe.

    The command line's overrides go to every training; evaluations find them in the checkpoint. They win over a stage's
    settings (``trainer.max_epochs=1``), but not over what makes the stage what it is, its keys without a dot: groups
    (``decoder=autoregressive``) and ``seed``.

    Args:
        recipe: The node ``recipe``: ``job`` and ``overrides`` of each stage, by name, in order.
        given: What the command line overrides.

    Raises:
        RecipeError: If it cannot be followed.
    """
    if not isinstance(recipe, DictConfig) or not recipe:
        raise RecipeError("recipe: must hold the stages by name, each with job and overrides")
    passed = _passed_on(given)
    stages: list[Stage] = []
    for number, name in enumerate(map(str, recipe), start=1):
        where = f"recipe.{name}"
        if not _NAME.fullmatch(name):
            raise RecipeError(f"{where}: a stage's name may hold letters, digits and _ only")
        node = OmegaConf.to_container(recipe[name], resolve=True) if isinstance(recipe[name], DictConfig) else None
        if not isinstance(node, dict):
            raise RecipeError(f"{where}: must hold job and overrides, found {recipe[name]!r}")
        job, overrides = _checked(where, {str(key): value for key, value in node.items()})
        own = {_key(text) for text in overrides if job == "train"}
        kept = [text for key, text in passed if "." in key or key not in own] if job == "train" else []
        stage = Stage(name, number, job, overrides, tuple(kept))
        known = [earlier.name for earlier in stages]
        for needed in stage.needs:
            if needed not in known:
                raise RecipeError(
                    f"{where}.overrides: {{{needed}}} is no earlier stage; earlier are: {', '.join(known) or 'none'}"
                )
        stages.append(stage)
    return stages


def _checked(where: str, node: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    for key in node:
        if key not in ("job", "overrides"):
            raise RecipeError(f"{where}.{key}: unknown key; a stage has job and overrides")
    job, overrides = node.get("job"), node.get("overrides", [])
    if job not in JOBS:
        raise RecipeError(f"{where}.job: found {job!r}; choose from {', '.join(JOBS)}")
    if not isinstance(overrides, list) or not all(isinstance(text, str | int | float) for text in overrides):
        raise RecipeError(f"{where}.overrides: must be a list of overrides, found {overrides!r}")
    texts = tuple(map(str, overrides))
    if job != "bench decoding":
        for text in texts:
            _key(text, where)
    return str(job), texts


def _key(text: str, where: str = "recipe") -> str:
    try:
        # What braces stand for is a plain path.
        return str(OverridesParser.create().parse_override(_PLACE.sub("folder", text)).key_or_group)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{where}.overrides: {text!r} is no override of Hydra's: {reason}") from error


def _passed_on(given: Sequence[str]) -> list[tuple[str, str]]:
    """Pick what stages are told of the command line, each with its key."""
    pairs = [(_key(text, "command line"), text) for text in given]
    for key, text in pairs:
        if key == "resume" and text.partition("=")[2] not in ("last", "null"):
            raise RecipeError(f"{text}: a recipe goes on by itself, in the folder that hydra.run.dir= names")
    return [(key, text) for key, text in pairs if key.split(".")[0] not in _NOT_PASSED_ON]
