"""Scenes: their parts, and a sampler.

A scene is a background and one to three groups. A group is one to four equal objects. No two groups of a scene
share a shape or a colour, so "the circle" always names one group. All lengths are shares of the canvas side,
x to the right and y down, so the facts hold at every image size.

Four kinds of scene are drawn: a single group somewhere named (0.63), a pair of groups side by side or one above the
other (0.26), an object inside a large ring (0.07), and three single objects in a row or a column (0.04).

Only ``random.Random.random`` is used, whose stream Python guarantees; a seed gives the same scene everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")
Point = tuple[float, float]

SHAPES = ("circle", "square", "triangle", "heart", "cross", "ring")
COLOURS = tuple("red orange yellow green blue purple pink brown black turquoise lime maroon".split())
BACKGROUNDS = tuple("white grey sky grass sand night water road wood brick sunset carpet".split())
SIZES = ("small", "large")
DIAMETERS = {"small": 0.2, "large": 0.3}
CONTAINER_DIAMETER = 0.54
POSITIONS = tuple("left right top bottom middle".split())
POSITIONS += ("top left", "top right", "bottom left", "bottom right", "corners")
SPLITS = ("train", "val", "test")

TOO_ALIKE = {("green", "grass"), ("lime", "grass"), ("yellow", "sand"), ("brown", "road"), ("brown", "brick")}
TOO_ALIKE |= {("brown", "night"), ("black", "night"), ("maroon", "night"), ("maroon", "carpet"), ("purple", "carpet")}
_CELLS = {"left": 0.2, "top": 0.2, "middle": 0.5, "right": 0.8, "bottom": 0.8}
_SPACING = {"small": 0.245, "large": 0.337}


@dataclass(frozen=True)
class Group:
    """Equal objects that a caption names with one noun phrase."""

    shape: str  # one of SHAPES
    colour: str  # one of COLOURS
    size: str  # small or large
    centres: tuple[Point, ...]  # of each object, in canvas sides
    diameter: float  # of each object's bounding circle, in canvas sides
    place: str | None = None  # what a caption may state, one of POSITIONS; None where a relation places the group

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.centres)


@dataclass(frozen=True)
class Scene:
    """Everything the picture shows."""

    background: str  # one of BACKGROUNDS
    groups: tuple[Group, ...]  # from left to right or from top to bottom; an inner object comes before its ring
    layout: str  # single, inside, or the axis along which the groups follow each other: row or column

    @property
    def signature(self) -> str:
        """The facts as text, without the exact coordinates; scenes of different splits never share one."""
        groups = (f"{g.count} {g.size} {g.colour} {g.shape} {g.place or ''}" for g in self.groups)
        return f"{self.background}|{self.layout}|" + "|".join(groups)

    @property
    def split(self) -> str:
        """The one split that may hold this scene: a tenth of all facts is val, a tenth is test."""
        bucket = hashlib.blake2b(self.signature.encode(), digest_size=4).digest()[0] % 10
        return {0: "val", 1: "test"}.get(bucket, "train")


def pick(rng: Random, table: Sequence[tuple[T, float]]) -> T:
    """Draw a value from (value, weight) pairs; the weights sum to one."""
    remaining = rng.random()
    for value, weight in table:
        remaining -= weight
        if remaining < 0:
            return value
    return table[0][0]


def choose(rng: Random, options: Sequence[T]) -> T:
    """Draw one of equally likely options."""
    return options[int(rng.random() * len(options))]


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """Draw scene ``index`` of a split: the first draw of its own stream whose facts belong to the split."""
    rng = Random(f"{seed}/{split}/{index}")
    while True:
        scene = pick(rng, _KINDS)(rng)
        if scene.split == split:
            return scene


def _looks(rng: Random, num_groups: int) -> tuple[str, list[tuple[str, str]]]:
    """A background, and (shape, colour) of each group, no shape and no colour twice."""
    background = choose(rng, BACKGROUNDS)
    shapes = list(SHAPES)
    colours = [colour for colour in COLOURS if (colour, background) not in TOO_ALIKE]
    looks = []
    for _ in range(num_groups):
        shape, colour = choose(rng, shapes), choose(rng, colours)
        shapes.remove(shape)
        colours.remove(colour)
        looks.append((shape, colour))
    return background, looks


def _jitter(rng: Random, reach: float) -> float:
    return (2 * rng.random() - 1) * reach


def _line(rng: Random, centre: Point, count: int, size: str, vertical: bool) -> tuple[Point, ...]:
    """Centres of ``count`` objects in a line, each a little out of true."""
    points = []
    for place in range(count):
        along = (place - (count - 1) / 2) * _SPACING[size]
        shift = (0.0, along) if vertical else (along, 0.0)
        points.append((centre[0] + shift[0] + _jitter(rng, 0.008), centre[1] + shift[1] + _jitter(rng, 0.008)))
    return tuple(points)


def _single(rng: Random) -> Scene:
    background, [(shape, colour)] = _looks(rng, 1)
    size = choose(rng, SIZES)
    count = pick(rng, ((1, 0.4), (2, 0.22), (3, 0.2), (4, 0.18)))
    shift = _jitter(rng, 0.03), _jitter(rng, 0.03)
    if count == 1:
        place = choose(rng, POSITIONS[:9])
        row, column = place.split() if " " in place else (place, place)
        x = _CELLS[column] if column in ("left", "right") else 0.5
        y = _CELLS[row] if row in ("top", "bottom") else 0.5
        centres: tuple[Point, ...] = ((x + shift[0], y + shift[1]),)
    elif count == 4 and (size == "large" or rng.random() < 0.4):
        place = choose(rng, ("corners", "middle"))
        reach = 0.31 if place == "corners" else _SPACING[size] / 2
        middle_x, middle_y = 0.5 + shift[0] / 2, 0.5 + shift[1] / 2
        centres = tuple((middle_x + x * reach, middle_y + y * reach) for y in (-1, 1) for x in (-1, 1))
    else:
        place = choose(rng, POSITIONS[:5])
        vertical = rng.random() < 0.5 if place == "middle" else place in ("left", "right")
        x, y = (_CELLS[place], 0.5) if vertical else (0.5, _CELLS[place])
        across = (shift[0], 0.0) if vertical else (0.0, shift[1])
        centres = _line(rng, (x + across[0], y + across[1]), count, size, vertical)
    return Scene(background, (Group(shape, colour, size, centres, DIAMETERS[size], place),), "single")


def _pair(rng: Random) -> Scene:
    background, looks = _looks(rng, 2)
    layout = choose(rng, ("row", "column"))
    counts = pick(rng, (((1, 1), 0.7), ((2, 1), 0.08), ((1, 2), 0.08), ((3, 1), 0.04), ((1, 3), 0.04), ((2, 2), 0.06)))
    sizes = choose(rng, SIZES), choose(rng, SIZES)
    extent = max(_SPACING[size] * (count - 1) + DIAMETERS[size] for count, size in zip(counts, sizes, strict=True))
    off_axis = 0.5 + _jitter(rng, max(0.0, min(0.22, 0.46 - extent / 2)))
    groups = []
    for along, (shape, colour), count, size in zip((0.25, 0.75), looks, counts, sizes, strict=True):
        place = along + _jitter(rng, 0.05)
        centre = (place, off_axis) if layout == "row" else (off_axis, place)
        groups.append(Group(shape, colour, size, _line(rng, centre, count, size, layout == "row"), DIAMETERS[size]))
    return Scene(background, tuple(groups), layout)


def _inside(rng: Random) -> Scene:
    background, [(_, colour), (_, ring_colour)] = _looks(rng, 2)
    shape = choose(rng, tuple(shape for shape in SHAPES if shape != "ring"))
    centre = 0.5 + _jitter(rng, 0.17), 0.5 + _jitter(rng, 0.17)
    inner = centre[0] + _jitter(rng, 0.03), centre[1] + _jitter(rng, 0.03)
    ring = Group("ring", ring_colour, "large", (centre,), CONTAINER_DIAMETER)
    return Scene(background, (Group(shape, colour, "small", (inner,), DIAMETERS["small"]), ring), "inside")


def _triple(rng: Random) -> Scene:
    background, looks = _looks(rng, 3)
    layout = choose(rng, ("row", "column"))
    off_axis = 0.5 + _jitter(rng, 0.25)
    groups = []
    for along, (shape, colour) in zip((0.17, 0.5, 0.83), looks, strict=True):
        size = choose(rng, SIZES)
        place, across = along + _jitter(rng, 0.006), off_axis + _jitter(rng, 0.03)
        centre = (place, across) if layout == "row" else (across, place)
        groups.append(Group(shape, colour, size, (centre,), DIAMETERS[size]))
    return Scene(background, tuple(groups), layout)


_KINDS = ((_single, 0.63), (_pair, 0.26), (_inside, 0.07), (_triple, 0.04))
