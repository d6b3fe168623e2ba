"""The words of the captions, each with its share; the first of a row is the usual one.

The grammar writes from these tables and the parser reads the same ones backwards, so they cannot drift apart.
"""

from __future__ import annotations

Table = tuple[tuple[str, float], ...]

NOUNS: dict[str, tuple[tuple[tuple[str, str], float], ...]] = {
    "circle": ((("circle", "circles"), 0.85), (("disc", "discs"), 0.15)),
    "square": ((("square", "squares"), 0.85), (("box", "boxes"), 0.15)),
    "triangle": ((("triangle", "triangles"), 1.0),),
    "heart": ((("heart", "hearts"), 1.0),),
    "cross": ((("cross", "crosses"), 1.0),),
    "ring": ((("ring", "rings"), 0.85), (("hoop", "hoops"), 0.15)),
}
SIZES: dict[str, Table] = {
    "small": (("small", 0.8), ("little", 0.2)),
    "large": (("large", 0.8), ("big", 0.2)),
}
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
GROUNDS: dict[str, Table] = {
    "white": (("on a white background", 0.7), ("on plain white", 0.3)),
    "grey": (("on a grey background", 0.7), ("on plain grey", 0.3)),
    "sky": (("in the sky", 0.7), ("in a clear sky", 0.3)),
    "grass": (("on the grass", 0.7), ("on a field of grass", 0.3)),
    "sand": (("on the sand", 0.7), ("on a sandy beach", 0.3)),
    "night": (("at night", 0.7), ("in the dark night", 0.3)),
    "water": (("in deep water", 0.7), ("in the water", 0.3)),
    "road": (("on the road", 0.7), ("on a dark road", 0.3)),
    "wood": (("on a wooden table", 0.7), ("on the wood", 0.3)),
    "brick": (("on a brick wall", 0.7), ("on the bricks", 0.3)),
    "sunset": (("at sunset", 0.7), ("in front of a sunset", 0.3)),
    "carpet": (("on the carpet", 0.7), ("on a soft carpet", 0.3)),
}
PLACES: dict[str, Table] = {
    "left": (("on the left", 0.7), ("on the left side", 0.3)),
    "right": (("on the right", 0.7), ("on the right side", 0.3)),
    "top": (("at the top", 0.7), ("near the top edge", 0.3)),
    "bottom": (("at the bottom", 0.7), ("near the bottom edge", 0.3)),
    "middle": (("in the middle", 0.7), ("in the centre", 0.3)),
    "top left": (("in the top left corner", 0.7), ("at the upper left", 0.3)),
    "top right": (("in the top right corner", 0.7), ("at the upper right", 0.3)),
    "bottom left": (("in the bottom left corner", 0.7), ("at the lower left", 0.3)),
    "bottom right": (("in the bottom right corner", 0.7), ("at the lower right", 0.3)),
    "corners": (("in the corners", 0.7), ("one in each corner", 0.3)),
}
LINKS: dict[str, Table] = {
    "left of": (("to the left of", 0.55), ("left of", 0.45)),
    "right of": (("to the right of", 0.55), ("right of", 0.45)),
    "above": (("above", 0.75), ("over", 0.25)),
    "below": (("below", 0.75), ("under", 0.25)),
    "inside": (("inside", 0.75), ("within", 0.25)),
    "around": (("around", 0.75), ("surrounding", 0.25)),
}

SHAPE_OF = {form: shape for shape, table in NOUNS.items() for forms, _ in table for form in forms}
SIZE_OF = {word: size for size, table in SIZES.items() for word, _ in table}
COUNT_OF = {word: number for number, word in NUMBERS.items()} | {"an": 1, "one": 1}
GROUND_OF = {name: name for name in GROUNDS} | {"sandy": "sand", "beach": "sand", "wooden": "wood", "bricks": "brick"}
LINK_OF = {word: name for name, table in LINKS.items() for word, _ in table if " " not in word}
ROW_OF = {"top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
