"""Every choice of every group composes and instantiates, and no file sets a key that nothing reads."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf

from fastcap.build import CONFIG_DIR, build_model
from fastcap.data.tokenizer import train_word_tokenizer

GROUPS = sorted(p.name for p in Path(CONFIG_DIR).iterdir() if p.is_dir())
CHOICES = [(group, p.stem) for group in GROUPS for p in sorted((Path(CONFIG_DIR) / group).glob("*.yaml"))]

PLUGINS = {  # what a choice needs beside FastCap itself
    ("sweep", "optuna"): "hydra_optuna_sweeper",
}


def _compose(*overrides):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose("train", overrides=list(overrides))


def _check(node, path):
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        target = node["_target_"]
        try:
            found = get_class(target)
        except ValueError:
            found = get_method(target)
        signature = inspect.signature(found)
        names = set(signature.parameters)
        anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        if anything and inspect.isclass(found):  # keywords are passed on to a base class: it must name them
            names |= {name for base in found.__mro__ for name in inspect.signature(base.__init__).parameters}
        unknown = {str(k) for k in node if not str(k).startswith("_")} - names
        assert not unknown or (anything and not target.startswith("fastcap.")), f"{path}: {unknown}"
    for key in node:
        _check(node[key], f"{path}.{key}")


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: value)
def test_every_choice_composes_names_real_code_and_builds(group, choice):
    if plugin := PLUGINS.get((group, choice)):
        pytest.importorskip(f"hydra_plugins.{plugin}", reason="an optional extra")
    partner = {"autoregressive": "refinement=greedy", "greedy": "decoder=autoregressive_mini"}
    partner |= {"autoregressive_mini": partner["autoregressive"]}
    cfg = _compose(f"{group}={choice}", *([partner[choice]] if choice in partner else []))
    OmegaConf.resolve(cfg)
    _check(cfg, "cfg")
    if group in ("backbone", "concepts", "decoder", "refinement"):
        tokenizer = train_word_tokenizer(["a red square", "two blue dots"], min_frequency=1)
        result = build_model(cfg, tokenizer).eval()(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
        assert result.tokens.shape[0] == 2


@pytest.mark.parametrize("job", ["distill", "pretrain"])
def test_pretraining_configs_name_real_code(job):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose(job, overrides=["data_dir=images"] if job == "pretrain" else [])
    OmegaConf.resolve(cfg)
    _check(cfg, job)


def _leaves(node, prefix=""):
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path


@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c[0] in ("experiment", "stage")])
def test_no_experiment_adds_an_unknown_key(group, choice):
    raw = OmegaConf.to_container(OmegaConf.load(Path(CONFIG_DIR) / group / f"{choice}.yaml"))
    defaults = raw.pop("defaults", [])
    groups = [
        f"{k.removeprefix('override ').lstrip('/')}={v}" for d in defaults if isinstance(d, dict) for k, v in d.items()
    ]
    base = _compose(*groups)
    unknown = [key for key in _leaves(raw) if OmegaConf.select(base, key, default="missing") == "missing"]
    assert not unknown


def test_an_unknown_key_is_refused():
    with pytest.raises(Exception, match="num_stepz"):
        _compose("refinement.num_stepz=3")


def test_nothing_names_a_machine():
    for path in Path(CONFIG_DIR).rglob("*.yaml"):
        assert not any(word in path.read_text() for word in ("/home/", "/work/", "/root/", "/tmp/")), path
