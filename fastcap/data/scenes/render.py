"""Drawing a scene: flat shapes with a darker rim on a lightly textured background, anti-aliased."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from fastcap.data.scenes.world import Group, Point, Scene

Colour = tuple[int, int, int]

PAINT: dict[str, Colour] = {
    "red": (222, 28, 32),
    "orange": (255, 138, 8),
    "yellow": (255, 226, 30),
    "green": (24, 142, 50),
    "blue": (32, 84, 228),
    "purple": (150, 58, 204),
    "pink": (255, 128, 196),
    "brown": (118, 70, 32),
    "black": (16, 16, 16),
    "turquoise": (0, 206, 200),
    "lime": (176, 255, 0),
    "maroon": (124, 0, 44),
}
GROUND: dict[str, tuple[Colour, Colour]] = {
    "white": ((248, 248, 248), (248, 248, 248)),
    "grey": ((150, 150, 152), (150, 150, 152)),
    "sky": ((142, 204, 250), (208, 236, 255)),
    "grass": ((160, 212, 108), (132, 192, 84)),
    "sand": ((238, 220, 178), (222, 198, 150)),
    "night": ((10, 12, 40), (28, 30, 72)),
    "water": ((44, 128, 148), (22, 96, 118)),
    "road": ((86, 86, 90), (80, 80, 84)),
    "wood": ((196, 152, 102), (178, 134, 84)),
    "brick": ((170, 98, 84), (156, 84, 72)),
    "sunset": ((104, 64, 128), (250, 176, 128)),
    "carpet": ((92, 62, 110), (80, 52, 96)),
}
_SPECKS: dict[str, tuple[int, float, float, Colour]] = {  # how many, half their width and height, colour
    "grass": (46, 0.004, 0.018, (108, 172, 66)),
    "sand": (60, 0.005, 0.005, (200, 172, 122)),
    "night": (22, 0.006, 0.006, (200, 204, 230)),
    "road": (40, 0.005, 0.004, (112, 112, 116)),
}
_RIM = 0.009
_RIM_SHADE = 0.58
_RING_BAND = 0.27


def _heart() -> list[Point]:
    turns = [2 * math.pi * step / 40 for step in range(40)]
    xs = [16 * math.sin(t) ** 3 for t in turns]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(x / 33, -(y + 2.5) / 33) for x, y in zip(xs, ys, strict=True)]


def _cross(half: float = 0.47, arm: float = 0.165) -> list[Point]:
    quarter = [(arm, -half), (arm, -arm), (half, -arm)]
    corners: list[Point] = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


_OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.43, -0.43), (0.43, -0.43), (0.43, 0.43), (-0.43, 0.43)],
    "triangle": [(0.0, -0.46), (0.5, 0.42), (-0.5, 0.42)],
    "heart": _heart(),
    "cross": _cross(),
}


def draw_scene(scene: Scene, size: int) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: The facts.
        size: Side of the picture in pixels; every fact is legible from 64 up.

    Returns:
        RGB pixels, uint8. (size, size, 3)
    """
    supersample = 4 if size <= 96 else 2
    canvas = _ground(scene.background, size * supersample).copy()
    draw = ImageDraw.Draw(canvas)
    for group in scene.groups:
        _draw_group(draw, group, size * supersample)
    return np.array(canvas.reduce(supersample))


def _draw_group(draw: ImageDraw.ImageDraw, group: Group, side: int) -> None:
    paint = PAINT[group.colour]
    rim_paint = tuple(round(channel * _RIM_SHADE) for channel in paint)
    reach, rim = group.diameter * side, max(1, round(_RIM * side))
    for x, y in ((x * side, y * side) for x, y in group.centres):
        box = (x - reach / 2, y - reach / 2, x + reach / 2, y + reach / 2)
        if group.shape == "circle":
            draw.ellipse(box, fill=paint, outline=rim_paint, width=rim)
        elif group.shape == "ring":
            band = round(_RING_BAND * min(reach, 0.32 * side))
            draw.ellipse(box, outline=rim_paint, width=band)
            inset = (box[0] + rim, box[1] + rim, box[2] - rim, box[3] - rim)
            draw.ellipse(inset, outline=paint, width=band - 2 * rim)
        else:
            corners = [(x + u * reach, y + v * reach) for u, v in _OUTLINES[group.shape]]
            draw.polygon(corners, fill=paint, outline=rim_paint, width=rim)


@lru_cache(maxsize=16)
def _ground(name: str, side: int) -> Image.Image:
    """The background, a vertical gradient with specks, the same in every scene that has it. (side, side) pixels."""
    top, bottom = (np.array(colour, dtype=np.float64) for colour in GROUND[name])
    shade = np.linspace(0.0, 1.0, side)[:, None, None]
    rows = np.rint(top * (1 - shade) + bottom * shade).astype(np.uint8)
    ground = Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (side, side, 3))))
    draw = ImageDraw.Draw(ground)
    rng = Random(name)
    number, wide, tall, colour = _SPECKS.get(name, (0, 0, 0, None))
    for _ in range(number):
        x, y = rng.random() * side, rng.random() * side
        draw.ellipse((x - wide * side, y - tall * side, x + wide * side, y + tall * side), fill=colour)
    return ground
