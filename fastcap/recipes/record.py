"""What a recipe's folder remembers: which stages were begun, how they were told, which are finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fastcap.jobs.jobs import write_json
from fastcap.recipes.plan import RecipeError, Stage, read_plan
from fastcap.training.checkpoints import RUNS_DIR

FILE = "recipe.json"


class Record:
    """``recipe.json`` of a recipe's folder.

    Args:
        run: The folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        try:
            content = json.loads((run / FILE).read_text(encoding="utf-8"))
            self.stages: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in content["stages"]}
        except FileNotFoundError:
            self.stages = {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{run / FILE}: cannot be read ({error})") from error

    def is_finished(self, stage: Stage) -> bool:
        """Whether a stage was brought to its end here."""
        return bool(self._entry(stage).get("finished"))

    def minutes(self, stage: Stage) -> float:
        """How long the processes of a stage took, all of them together."""
        return float(self._entry(stage).get("minutes", 0.0))

    def complaint(self, stage: Stage) -> str:
        """Say why a stage's folder is none to go on in; "" where it is."""
        entry, place = self._entry(stage), self.run / stage.folder
        if not entry:
            return ""
        again = f"remove {place} to do it anew, or give another hydra.run.dir"
        trained = stage.job == "train" and any((place / "checkpoints").glob("*.ckpt"))
        if entry["told"] != stage.told and (entry["finished"] or trained):
            old, new = (", ".join(sorted(set(a) - set(b))) or "nothing" for a, b in _both(entry["told"], stage.told))
            return f"it was done with {old} in the place of {new}: {again}"
        for name in stage.needs:
            if str(self.stages.get(name, {}).get("finished") or "") > str(entry["begun"]):
                return f"stage {name!r} was done anew since: {again}"
        return ""

    def begin(self, stage: Stage) -> None:
        """Note that a stage's process starts."""
        entry = self._entry(stage) or {"name": stage.name, "folder": stage.folder, "begun": _now(), "minutes": 0.0}
        self.stages[stage.name] = entry | {"told": stage.told, "finished": None}
        self._write()

    def end(self, stage: Stage, minutes: float, finished: bool) -> None:
        """Note that a stage's process ended."""
        entry = self.stages[stage.name]
        entry["minutes"] = round(entry["minutes"] + minutes, 3)
        entry["finished"] = _now() if finished else None
        self._write()

    def _entry(self, stage: Stage) -> dict[str, Any]:
        """What is known of a stage; nothing where it has another place or its folder is gone."""
        entry = self.stages.get(stage.name, {})
        known = entry and entry["folder"] == stage.folder and (self.run / stage.folder).is_dir()
        return entry if known else {}

    def _write(self) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        write_json(self.run / FILE, {"stages": list(self.stages.values())})


def recipe_folder(name: str, recipe: DictConfig, given: Sequence[str], new: str) -> str:
    """Name a recipe's folder: the newest one of that name that the same command began, if any; else a new one.

    Args:
        name: The run's name.
        recipe: The node ``recipe``.
        given: What the command line overrides.
        new: The folder's name where there is none.
    """
    try:
        plan = read_plan(recipe, list(given))
    except RecipeError:
        return new  # said in full by the run itself
    for folder in sorted((RUNS_DIR / name).glob("*"), reverse=True):
        if (folder / FILE).is_file():
            try:
                record = Record(folder)
            except RecipeError:
                continue
            begun = {stage.name for stage in plan if record._entry(stage)}
            same = begun and begun == {n for n, entry in record.stages.items() if (folder / entry["folder"]).is_dir()}
            if same and not any(record.complaint(stage) for stage in plan):
                return folder.name
    return new


OmegaConf.register_new_resolver("fastcap.recipe_folder", recipe_folder, use_cache=True, replace=True)


def _both(old: Sequence[str], new: Sequence[str]) -> tuple[tuple[Sequence[str], Sequence[str]], ...]:
    return (old, new), (new, old)


def _now() -> str:
    return datetime.now().isoformat(timespec="microseconds")
