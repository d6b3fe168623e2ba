"""Reading the claims out of a caption, grammatical or not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastcap.data.scenes.lexicon import COUNT_OF, GROUND_OF, LINK_OF, ROW_OF, SHAPE_OF, SIZE_OF
from fastcap.data.scenes.world import COLOURS


@dataclass(frozen=True)
class GroupClaim:
    """A noun phrase; None where it says nothing of the kind."""

    shape: str
    colour: str | None = None
    size: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class PositionClaim:
    """``group`` (index into ``Claims.groups``, None when the caption names none) is at ``position``."""

    group: int | None
    position: str


@dataclass(frozen=True)
class RelationClaim:
    """``subject`` stands in ``relation`` to ``objects``: two of them for ``between``, one for all others.

    Indices point into ``Claims.groups``; None stands for a noun phrase that is not there.
    """

    subject: int | None
    relation: str
    objects: tuple[int | None, ...]


@dataclass(frozen=True)
class Claims:
    """Everything a caption says that a picture can make true or false, in order of mention."""

    groups: tuple[GroupClaim, ...] = ()
    positions: tuple[PositionClaim, ...] = ()
    relations: tuple[RelationClaim, ...] = ()
    backgrounds: tuple[str, ...] = ()


def parse_caption(text: str) -> Claims:
    """Read the claims out of any text; never raises.

    A shape word makes a group; the unbroken run of numbers, sizes and colours before it (any order, the nearest of a
    kind wins) describes it. A relation binds the nearest groups before and after its word. A position binds the nearest
    group before it, else the next one. What is in no table is skipped.

    Args:
        text: A caption; case and punctuation do not matter.

    Returns:
        The claims, empty when nothing was understood.
    """
    words = re.findall(r"[a-z]+", text.lower())
    groups: list[GroupClaim] = []
    places: list[int] = []
    for place, word in enumerate(words):
        if word in SHAPE_OF:
            groups.append(_noun_phrase(words, place))
            places.append(place)

    def before(place: int) -> int | None:
        return max((index for index, at in enumerate(places) if at < place), default=None)

    def after(place: int, skip: int = 0) -> int | None:
        later = [index for index, at in enumerate(places) if at > place]
        return later[skip] if len(later) > skip else None

    positions: list[PositionClaim] = []
    relations: list[RelationClaim] = []
    backgrounds: list[str] = []
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        if word in GROUND_OF and following not in ("beach", "night"):
            backgrounds.append(GROUND_OF[word])
        elif word == "between":
            relations.append(RelationClaim(before(place), word, (after(place), after(place, skip=1))))
        elif word in ("left", "right") and following == "of":
            relations.append(RelationClaim(before(place), f"{word} of", (after(place),)))
        elif word in LINK_OF:
            relations.append(RelationClaim(before(place), LINK_OF[word], (after(place),)))
        elif (position := _position(words, place)) is not None:
            group = before(place)
            positions.append(PositionClaim(after(place) if group is None else group, position))
    return Claims(tuple(groups), tuple(positions), tuple(relations), tuple(dict.fromkeys(backgrounds)))


def _noun_phrase(words: list[str], place: int) -> GroupClaim:
    """The group whose shape word stands at ``place``."""
    colour = size = count = None
    for word in reversed(words[:place]):
        if word in COLOURS:
            colour = colour or word
        elif word in SIZE_OF:
            size = size or SIZE_OF[word]
        elif word in COUNT_OF:
            count = count or COUNT_OF[word]
        else:
            break
    return GroupClaim(SHAPE_OF[words[place]], colour, size, count)


def _position(words: list[str], place: int) -> str | None:
    """The position that the word at ``place`` begins, if any."""
    word = words[place]
    following = words[place + 1] if place + 1 < len(words) else ""
    if word in ROW_OF:
        return f"{ROW_OF[word]} {following}" if following in ("left", "right") else ROW_OF[word]
    if word in ("left", "right"):
        return None if place and words[place - 1] in ROW_OF else word
    if word in ("middle", "centre"):
        return "middle"
    if word == "corners" or (word == "corner" and words[place - 1 : place] == ["each"]):
        return "corners"
    return None
