"""Arguments of the authors' training scripts of Conditional DETR, DAB-DETR, DN-DETR and DINO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from groupdetr.checkpoints.layout import Description, IdAndName, Metadata
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.metadata_fields import CATEGORIES

# Arguments -> recipe fields. They follow from the tensors, so they are only written.
SIZES = {
    "num_queries": "num_queries",
    "group_detr": "num_groups",
    "hidden_dim": "channels",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "dim_feedforward": "dim_feedforward",
}


def arguments(names: Mapping[str, str], description: Description) -> dict[str, Any]:
    """Return the arguments of a training script that describe a detector.

    ``names``: argument -> recipe field. They are those of the authors' scripts, and the classes and
    the size of the images, which the scripts do not have.
    """
    fields, classes = description.fields, list(description.categories)
    return {
        **{theirs: fields[ours] for theirs, ours in names.items() if ours in fields},
        "backbone": "resnet50",
        "position_embedding": "sine",
        "dataset_file": "coco" if classes == list(enumerate(COCO_91)) else "custom",
        CATEGORIES: [[id, name] for id, name in classes],
        "imgsz": description.imgsz,
    }


def categories(args: Metadata) -> list[IdAndName]:
    """Return the classes: COCO's category ids, which are the rows, or those of this library."""
    if args.get("dataset_file") == "coco":
        return list(enumerate(COCO_91))
    return [(id, name) for id, name in args.get(CATEGORIES, ())]
