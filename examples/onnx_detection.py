"""Detect objects with a file of `groupdetr export`, by onnxruntime, NumPy and Pillow alone.

python onnx_detection.py best.onnx photo.jpg [SCORE]
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def input_size(width, height, metadata):
    """Return the width and height of the input: those of the evaluation in training."""
    if metadata["size"]:
        return metadata["size"][::-1]
    shortest, longest = metadata["imgsz"], round(1333 * metadata["imgsz"] / 800)
    if max(width, height) / min(width, height) * shortest > longest:
        shortest = round(longest * min(width, height) / max(width, height))
    side = int(shortest * max(width, height) / min(width, height))
    size = (shortest, side) if width < height else (side, shortest)
    divisor = metadata.get("divisor", 1)  # Both sides are multiples of it.
    return [max(1, (2 * pixels + divisor) // (2 * divisor)) * divisor for pixels in size]


def detect(file, image_file, min_score=0.5):
    """Yield the class, the score and the box (x0, y0, x1, y1 in pixels) of every detection."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["groupdetr"])
    image = ImageOps.exif_transpose(Image.open(image_file)).convert("RGB")
    width, height = input_size(*image.size, metadata)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    images = pixels.transpose(2, 0, 1)[None]  # [1,3,H,W], RGB from 0 to 255
    scores, labels, boxes = session.run(["scores", "labels", "boxes"], {"images": images})
    boxes = boxes * ([image.width / width, image.height / height] * 2)
    boxes = boxes.clip(0, [image.width, image.height] * 2)
    for score, label, box in zip(scores[0], labels[0], boxes[0]):
        if score >= min_score:
            yield metadata["categories"][label][1], float(score), box.tolist()


if __name__ == "__main__":
    for name, score, box in detect(*sys.argv[1:3], *map(float, sys.argv[3:4])):
        print(f"{name} {score:.2f}", [round(side) for side in box])
