"""ViT-Huge: a detector is pretrained on other data, and then trained with and without groups."""

from __future__ import annotations

from dataclasses import replace

from groupdetr.errors import UsageError
from groupdetr.paper import small_scale
from groupdetr.paper.item import Choices, Item
from groupdetr.paper.plan import GainRow, Plan, Row
from groupdetr.paper.scale import Detector, Scale, expect_images

PIPELINE = (
    "groupdetr train objects365/ --model dino-4scale-vit-h --pretrained-backbone FILE, then "
    "groupdetr train coco/ --model dino-4scale-vit-h --weights RUN (docs/reproducing.md)"
)


class ViTH(Item):
    name = "vit-h"
    title = "ViT-Huge: pretraining of the whole detector, at small size"
    shows = "Does the pipeline of the paper's largest detector work, and what does it bring?"
    source = (
        "The paper has 64.5 AP on COCO test-dev, with 629 million parameters; it has no figure "
        "without pretraining."
    )

    def detectors(self, scale: Scale) -> list[Detector]:
        if not scale.is_small:
            raise UsageError(
                "vit-h is a small-scale item: at full size its second dataset is Objects365",
                remedy=f"groupdetr paper vit-h without --data; at full size: {PIPELINE}",
            )
        detector = scale.first("dino-vit")
        expect_images(self.name, detector)  # It is pretrained on images.
        return [detector]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        (detector,) = self.detectors(scale)
        groups = max(choices.groups, default=detector.groups)
        source = replace(detector, data=scale.drawn_set(small_scale.many_shapes()))
        scratch, pretrained, without = [], [], []
        for seed in choices.seeds:
            first = source.training(groups, seed)
            scratch.append(detector.training(groups, seed))
            pretrained.append(detector.training(groups, seed, parent=first))
            without.append(detector.training(1, seed, parent=source.training(1, seed)))
        rows = [
            Row("scratch", f"from scratch, K = {groups}", tuple(scratch), baseline=True),
            Row("k1", "pretrained, K = 1", tuple(without), baseline=True),
            Row("pretrained", f"pretrained, K = {groups}", tuple(pretrained)),
        ]
        gains = [
            GainRow("pretraining of the detector", "scratch", "pretrained"),
            GainRow("groups, in both steps", "k1", "pretrained"),
        ]
        return Plan(rows, gains)

    def texts(self, _results: object) -> list[str]:
        return [
            "The paper's pipeline has three steps: an encoder that is pretrained without labels, "
            "the whole detector pretrained on Objects365, and a training on COCO. Here the "
            "encoder is a small plain ViT that begins at random, the detector is pretrained on "
            "drawn images with more classes and objects, and it is then trained and evaluated on "
            "the images of the other items. The rows of classes that both datasets name are kept."
        ]
