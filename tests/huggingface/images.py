"""Real images for detectors of transformers, as a user of transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.huggingface.detectors import masks

SIZE = 64


class CocoImages(torch.utils.data.Dataset[dict[str, Any]]):
    """The first images of tiny_coco, resized, with their objects of the classes of a tiny detector.

    All categories are one class, because the tiny detectors have three.
    """

    def __init__(self, real_data: Path, num_images: int) -> None:
        from transformers import DetrImageProcessor

        folder = real_data / "tiny_coco"
        annotations = json.loads((folder / "train.json").read_text())
        processor = DetrImageProcessor(size={"height": SIZE, "width": SIZE}, do_pad=False)
        self.examples = []
        for image in annotations["images"][:num_images]:
            objects = []
            for annotation in annotations["annotations"]:
                if annotation["image_id"] == image["id"] and not annotation["iscrowd"]:
                    objects.append({**annotation, "category_id": 0})
            # The detectors have five queries.
            target = {"image_id": image["id"], "annotations": objects[:3]}
            pixels = Image.open(folder / "images" / image["file_name"]).convert("RGB")
            inputs = processor(images=pixels, annotations=target, return_tensors="pt")
            example = {
                "pixel_values": inputs["pixel_values"][0],
                "labels": dict(inputs["labels"][0]),
            }
            self.examples.append(example)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]


def collate(model: Any) -> Any:
    """Return the function that makes a batch of images for a detector."""

    def batch_of(examples: list[dict[str, Any]]) -> dict[str, Any]:
        pixels = torch.stack([example["pixel_values"] for example in examples])
        labels = [dict(example["labels"]) for example in examples]
        for label in labels:
            label["masks"] = masks(label["boxes"])
        if not hasattr(model, "criterion"):
            return {"pixel_values": pixels, "labels": labels}
        return {
            "pixel_values": pixels,
            "mask_labels": [label["masks"] for label in labels],
            "class_labels": [label["class_labels"] for label in labels],
        }

    return batch_of
