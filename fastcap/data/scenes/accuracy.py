"""How much of what captions claim is true of their scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fastcap.data.scenes.language import Claims, parse_caption
from fastcap.data.scenes.world import Group, Scene, between, related

KINDS = ("object", "colour", "count", "size", "relation", "position", "background")


def scene_accuracy(scenes: Mapping[int, Scene], captions: Mapping[int, str]) -> dict[str, float]:
    """Measure the share of the claims of each kind that are true, and the share of the groups that are named.

    A claimed group is matched to the scene's group of that shape, each of which can be matched once; whatever is
    claimed of a group without a match is false, so a second "circle" in a scene with one group of circles is false in
    every respect. A caption that names no object counts as one false object. A relation or a position that lacks a
    group is false.

    Args:
        scenes: Scenes by image id.
        captions: One caption of each image, by image id.

    Returns:
        ``{kind}_accuracy`` for each of ``KINDS`` and ``object_recall``, all x 100. A kind of which no claim was made
        scores 0, so that silence earns nothing.

    Raises:
        KeyError: An id is not among the scenes.
    """
    true: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for image_id, caption in captions.items():
        for kind, verdicts in check_claims(scenes[image_id], parse_caption(caption)).items():
            true[kind] += sum(verdicts)
            total[kind] += len(verdicts)
        total["groups"] += len(scenes[image_id].groups)
    values = {f"{kind}_accuracy": 100 * true[kind] / max(1, total[kind]) for kind in KINDS}
    return values | {"object_recall": 100 * true["object"] / max(1, total["groups"])}


def check_claims(scene: Scene, claims: Claims) -> dict[str, list[bool]]:
    """Whether each claim is true of a scene, listed under each of ``KINDS``."""
    by_shape = {group.shape: group for group in scene.groups}
    matches: list[Group | None] = [by_shape.pop(claim.shape, None) for claim in claims.groups]
    pairs = list(zip(claims.groups, matches, strict=True))

    def match(index: int | None) -> Group | None:
        return None if index is None else matches[index]

    relations = []
    for claim in claims.relations:
        subject, objects = match(claim.subject), [match(index) for index in claim.objects]
        known = [group for group in objects if group is not None]
        if subject is None or len(known) < len(objects):
            relations.append(False)
        elif claim.relation == "between":
            relations.append(between(subject, *known))
        else:
            relations.append(related(subject, claim.relation, *known))
    placed = [(match(claim.group), claim.position) for claim in claims.positions]
    return {
        "object": [group is not None for group in matches] or [False],
        "colour": [group is not None and group.colour == claim.colour for claim, group in pairs if claim.colour],
        "count": [group is not None and group.count == claim.count for claim, group in pairs if claim.count],
        "size": [group is not None and group.size == claim.size for claim, group in pairs if claim.size],
        "relation": relations,
        "position": [group is not None and position in group.positions for group, position in placed],
        "background": [name == scene.background for name in claims.backgrounds],
    }
