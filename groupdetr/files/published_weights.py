"""The names of published files of weights by which people look for them, and where they are.

Only addresses that the publishers state in their own code or documentation are listed.
"""

from __future__ import annotations

from pathlib import PurePath

# LW-DETR's files are in a folder of one model on the Hugging Face hub.
LW_DETR_MODEL = "xbsu/LW-DETR"
LW_DETR_FOLDER = "pretrain_weights"
LW_DETR_FILES = frozenset(
    f"LWDETR_{size}_{training}.pth"
    for size in ("tiny", "small", "medium", "large", "xlarge")
    for training in ("30e_objects365", "60e_coco")
)

_ROBOFLOW = "https://storage.googleapis.com/rfdetr"
_PADDLE = "https://bj.bcebos.com/v1/paddledet/models"
# The name of a file -> its address. The names are those that the publishers' programs use.
ADDRESSES = {
    "rf-detr-nano.pth": f"{_ROBOFLOW}/nano_coco/checkpoint_best_regular.pth",
    "rf-detr-small.pth": f"{_ROBOFLOW}/small_coco/checkpoint_best_regular.pth",
    "rf-detr-medium.pth": f"{_ROBOFLOW}/medium_coco/checkpoint_best_regular.pth",
    "rf-detr-large-2026.pth": f"{_ROBOFLOW}/rf-detr-large-2026.pth",
    "rf-detr-base.pth": f"{_ROBOFLOW}/rf-detr-base-coco.pth",
    "rf-detr-base-coco.pth": f"{_ROBOFLOW}/rf-detr-base-coco.pth",
    "rf-detr-base-2.pth": f"{_ROBOFLOW}/rf-detr-base-2.pth",
    "rf-detr-large.pth": f"{_ROBOFLOW}/rf-detr-large.pth",
    "rf-detr-seg-preview.pt": f"{_ROBOFLOW}/rf-detr-seg-preview.pt",
    **{
        name: f"{_ROBOFLOW}/rf-detr-seg-{short}-ft.pth"
        for size, short in {
            "nano": "n",
            "small": "s",
            "medium": "m",
            "large": "l",
            "xlarge": "xl",
            "xxlarge": "2xl",
        }.items()
        for name in (f"rf-detr-seg-{size}.pt", f"rf-detr-seg-{short}-ft.pth")
    },
    **{
        name: f"{_PADDLE}/{name}"
        for name in (
            "group_dino_r50_4scale_1x_coco.pdparams",
            "group_dino_vit_huge_4scale_1x_coco.pdparams",
        )
    },
}


# Preset -> what `--weights` takes for the published weights of such a detector: a model on the
# Hugging Face hub, or the name of a file
WEIGHTS_OF_PRESETS = {
    **{
        f"lw-detr-{size}": f"AnnaZhang/lwdetr_{size}_60e_coco"
        for size in ("tiny", "small", "medium", "large", "xlarge")
    },
    **{
        f"rf-detr-{size}": f"Roboflow/rf-detr-{size}"
        for size in ("nano", "small", "medium", "large", "base")
    },
    "rf-detr-large-deprecated": "rf-detr-large.pth",
    **{
        f"rf-detr-seg-{size}": f"rf-detr-seg-{size}.pt"
        for size in ("nano", "small", "medium", "large", "xlarge")
    },
    "rf-detr-seg-2xlarge": "rf-detr-seg-xxlarge.pt",
    "rf-detr-seg-preview": "rf-detr-seg-preview.pt",
}


def address_of_published(path: str) -> str:
    """Return the address of a published file, given a path with its name; "" if it is none."""
    return ADDRESSES.get(PurePath(path).name, "")
