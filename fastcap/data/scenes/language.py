"""The language of the captions: its words, and the grammar that writes captions.

    caption  := clause | "there is" clause | "a picture of" clause | place "there is" noun ground?
    clause   := noun place? ground?                               one group
              | noun link noun ground? | noun "and" noun ground?  two groups; the link may follow "is" or "sits"
              | noun "between" noun "and" noun ground?            three groups
              | noun "and" noun "and" noun ground?
    noun     := number size? colour? shape

Every choice is skewed: one form leads, mostly with half or more of the weight. A caption makes its choices of style
(with sizes or not, with colours or not, which synonym) once, for all its nouns.

The order of facts is fixed and visible in the picture. Of two groups the left or the upper one comes first, and the
inner object before its ring; a tenth of the captions says the relation the other way round. Of three groups the middle
one is named first, then the others from left to right or top to bottom.

A caption shorter than ``MIN_WORDS`` or longer than ``MAX_WORDS`` is drawn again.
"""

from __future__ import annotations

from random import Random

from fastcap.data.scenes.world import Group, Scene, pick

# The words, each with its share; the first of a row is the usual one.
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

MIN_WORDS, MAX_WORDS = 5, 16

_FRAMES = (("", 0.52), ("there", 0.25), ("a picture of", 0.15), ("place first", 0.08))
_DETAILS = (("place ground", 0.4), ("ground", 0.35), ("place", 0.25))
_PAIR_FORMS = (("", 0.65), ("is", 0.13), ("sits", 0.1), ("and", 0.12))
_COLOURED, _SIZED, _CONVERSE, _GROUNDED, _BETWEEN = 0.96, 0.6, 0.1, 0.55, 0.8
_RELATIONS = {"row": ("left of", "right of"), "column": ("above", "below"), "inside": ("inside", "around")}


def draw_captions(rng: Random, scene: Scene, number: int) -> tuple[str, ...]:
    """Draw ``number`` captions of a scene, no two alike."""
    captions: dict[str, None] = {}
    while len(captions) < number:
        captions[draw_caption(rng, scene)] = None
    return tuple(captions)


def draw_caption(rng: Random, scene: Scene) -> str:
    """Draw one caption of ``MIN_WORDS`` to ``MAX_WORDS`` lower-case words."""
    while True:
        caption = _CLAUSES[len(scene.groups)](rng, scene)
        if MIN_WORDS <= caption.count(" ") + 1 <= MAX_WORDS:
            return caption


def _nouns(rng: Random, groups: tuple[Group, ...]) -> list[str]:
    """Noun phrases of all groups in one style."""
    coloured, sized = rng.random() < _COLOURED, rng.random() < _SIZED
    usual_size, usual_noun = rng.random(), rng.random()
    phrases = []
    for group in groups:
        size, noun = SIZES[group.size], NOUNS[group.shape]
        words = [size[usual_size > size[0][1]][0]] if sized else []
        words += [group.colour] if coloured else []
        words.append(noun[usual_noun > noun[0][1]][0][group.count > 1])
        number = "an" if group.count == 1 and words[0][0] in "aeiou" else NUMBERS[group.count]
        phrases.append(" ".join([number, *words]))
    return phrases


def _be(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _framed(frame: str, head: Group, clause: str) -> str:
    if frame == "there":
        return f"there {_be(head)} {clause}"
    return f"{frame} {clause}" if frame == "a picture of" else clause


def _one(rng: Random, scene: Scene) -> str:
    [group] = scene.groups
    assert group.place is not None
    [noun] = _nouns(rng, scene.groups)
    place, ground = pick(rng, PLACES[group.place]), pick(rng, GROUNDS[scene.background])
    frame, details = pick(rng, _FRAMES), pick(rng, _DETAILS)
    if frame == "place first":
        clause = f"{place} there {_be(group)} {noun}"
        return f"{clause} {ground}" if details == "place ground" else clause
    chosen = {"place": place, "ground": ground}
    return _framed(frame, group, " ".join([noun, *(chosen[detail] for detail in details.split())]))


def _two(rng: Random, scene: Scene) -> str:
    first, second = scene.groups
    relation, converse = _RELATIONS[scene.layout]
    if rng.random() < _CONVERSE:
        first, second, relation = second, first, converse
    noun, other = _nouns(rng, (first, second))
    form, frame = pick(rng, _PAIR_FORMS), pick(rng, _FRAMES)
    if form == "and":
        clause = f"{noun} and {other}"
    else:
        verb = {"": "", "is": f"{_be(first)} ", "sits": "sits " if first.count == 1 else "sit "}[form]
        clause = f"{noun} {verb}{pick(rng, LINKS[relation])} {other}"
    if rng.random() < _GROUNDED:
        clause = f"{clause} {pick(rng, GROUNDS[scene.background])}"
    return _framed(frame if form in ("", "and") else "", first, clause)


def _three(rng: Random, scene: Scene) -> str:
    first, middle, last = _nouns(rng, scene.groups)
    frame = pick(rng, _FRAMES)
    if rng.random() < _BETWEEN:
        clause, head = f"{middle} between {first} and {last}", scene.groups[1]
    else:
        clause, head = f"{first} and {middle} and {last}", scene.groups[0]
    if rng.random() < _GROUNDED:
        clause = f"{clause} {pick(rng, GROUNDS[scene.background])}"
    return _framed(frame, head, clause)


_CLAUSES = {1: _one, 2: _two, 3: _three}
