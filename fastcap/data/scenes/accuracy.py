"""How much of what captions claim is true of their scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from fastcap.data.scenes.language import Claims, parse_caption
from fastcap.data.scenes.world import Group, Scene, between, related

KINDS = ("object", "colour", "count", "size", "relation", "position", "background")


class FactRecords(Protocol):
    """What the metric asks of a split: ids, and the scene at each position."""

    @property
    def image_ids(self) -> Sequence[int]:
        """Ids, unique."""

    @property
    def facts(self) -> Sequence[Scene]:
        """The scene of each id."""


class SceneAccuracy(Metric):
    """Share of the claims of each kind that are true, and share of the groups that are named.

    A claimed group is matched to the scene's group of that shape, each of which can be matched once; whatever is
    claimed of a group without a match is false, so a second "circle" in a scene with one group of circles is false in
    every respect. A caption that names no object counts as one false object. A relation or a position that lacks a
    group is false.

    Captions are counted as they come: evaluate without the repeats that a padding distributed sampler adds.
    """

    full_state_update = False
    higher_is_better = True
    true_claims: Tensor
    claims: Tensor
    found_groups: Tensor
    groups: Tensor

    def __init__(self, records: FactRecords) -> None:
        """Remember the scene of every image id of ``records``."""
        super().__init__()
        self._scenes = dict(zip(records.image_ids, records.facts, strict=True))
        zeros = torch.zeros(len(KINDS), dtype=torch.long)
        self.add_state("true_claims", default=zeros.clone(), dist_reduce_fx="sum")
        self.add_state("claims", default=zeros.clone(), dist_reduce_fx="sum")
        self.add_state("found_groups", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("groups", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, image_ids: Sequence[int], captions: Sequence[str]) -> None:
        """Count the claims of one caption an image.

        Args:
            image_ids: Ids out of the records, ints or a tensor. (B,)
            captions: One caption an id. (B,)

        Raises:
            KeyError: An id is not in the records.
            ValueError: There are not as many ids as captions.
        """
        true = torch.zeros(len(KINDS), dtype=torch.long)
        total = torch.zeros(len(KINDS), dtype=torch.long)
        found = num_groups = 0
        for image_id, caption in zip(image_ids, captions, strict=True):
            if int(image_id) not in self._scenes:
                raise KeyError(f"image id {int(image_id)} is none of the {len(self._scenes)} scenes of this split")
            scene = self._scenes[int(image_id)]
            verdicts = check_claims(scene, parse_caption(caption))
            for kind, name in enumerate(KINDS):
                true[kind] += sum(verdicts[name])
                total[kind] += len(verdicts[name])
            found += sum(verdicts["object"])
            num_groups += len(scene.groups)
        self.true_claims += true.to(self.true_claims.device)
        self.claims += total.to(self.claims.device)
        self.found_groups += found
        self.groups += num_groups

    def compute(self) -> dict[str, float]:
        """Return ``{kind}_accuracy`` for each of ``KINDS`` and ``object_recall``, all x 100.

        The keys are always the same: a kind of which no claim was made scores 0, so that silence earns nothing.
        """
        shares = self.true_claims.double() / self.claims.clamp(min=1)
        values = {f"{name}_accuracy": 100 * share for name, share in zip(KINDS, shares.tolist(), strict=True)}
        return values | {"object_recall": 100 * float(self.found_groups) / max(1, int(self.groups))}


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
