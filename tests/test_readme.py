"""What README and docs tell a reader to type exists and composes."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fastcap import caption, export
from fastcap.build import CONFIG_DIR
from fastcap.eval import checkpoint_overrides
from fastcap.reporting import score
from fastcap.serving import demo
from fastcap.tools import bench

PARSERS = {
    "caption": caption.parse_arguments,
    "demo": demo.parse_arguments,
    "export": export.parse_arguments,
    "score": score.parse_arguments,
}
ROOT = Path(__file__).parents[1]
PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
README = PAGES[ROOT / "README.md"]
TEXT = "\n".join(PAGES.values())
LINES = sorted(
    {
        m.group(0)
        for m in re.finditer(
            r"make [a-z-]+(?: (?:ARGS|PHOTO|RUNS|RESULTS|REFERENCES|TORCH_INDEX)=(?:\"[^\"]*\"|[^\s`#]+))*", TEXT
        )
    }
)


def _parts(line):
    words = shlex.split(line)[1:]
    settings = dict(word.split("=", 1) for word in words[1:])
    named = [settings[name] for name in ("PHOTO", "RESULTS", "REFERENCES") if name in settings]
    return words[0], shlex.split(settings.get("ARGS", "")), named + shlex.split(settings.get("RUNS", ""))


@pytest.mark.parametrize("line", LINES)
def test_every_make_line_is_real(line):
    target, arguments, paths = _parts(line)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    overrides = [a for a in arguments if a != "-m"]
    if target in ("train", "sweep"):
        first = [o.split(",")[0] if target == "sweep" else o for o in overrides]
        with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            compose("train", overrides=first)
    elif target == "eval":
        known = {"refinement.num_steps"}
        assert set(checkpoint_overrides(overrides)) <= known
    elif target == "distill":
        with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            compose("distill", overrides=overrides)
    elif target == "bench":
        bench.parse_arguments(arguments)
    elif target in PARSERS:
        PARSERS[target]([*paths, *arguments])


def test_code_map_names_real_places():
    named = re.findall(r"`([^`]+)`", README.split("## Code map")[1].split("\n## ")[0])
    places = [name for name in named if "/" in name or name.endswith(".py")]
    assert len(places) >= 10
    for name in places:
        assert (ROOT / name).exists() or (ROOT / "fastcap" / name).exists(), name


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
