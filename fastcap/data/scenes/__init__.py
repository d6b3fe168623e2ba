"""The embedded data set: drawn scenes with captions, no download, the right answer known."""

from fastcap.data.scenes.accuracy import SceneAccuracy
from fastcap.data.scenes.grammar import draw_caption, draw_captions
from fastcap.data.scenes.parser import Claims, parse_caption
from fastcap.data.scenes.render import draw_scene
from fastcap.data.scenes.source import SceneRecords, Scenes, write_coco
from fastcap.data.scenes.world import Group, Scene, sample_scene

__all__ = [
    "Claims",
    "Group",
    "Scene",
    "SceneAccuracy",
    "SceneRecords",
    "Scenes",
    "draw_caption",
    "draw_captions",
    "draw_scene",
    "parse_caption",
    "sample_scene",
    "write_coco",
]
