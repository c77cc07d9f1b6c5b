"""The size of images that the image processor of a folder of transformers has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.weights.conversion import file_image_size, file_options
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from groupdetr.weights.huggingface_processor import processor_note


@pytest.mark.parametrize(
    ("processor", "side", "is_square", "is_noted"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 800}}, 480, False, False),
        ({"size": 480, "max_size": 800}, 480, False, False),
        ({"size": {"height": 640, "width": 640}}, 640, True, False),
        ({"size": {"shortest_edge": 800, "longest_edge": 800}}, None, None, True),
        ({"size": {"max_height": 480, "max_width": 480}}, None, None, True),
        ({"size": {"height": 480, "width": 640}}, None, None, True),
        ({"size": [480, 640]}, None, None, False),
        ({"size": {"shortest_edge": 480}, "do_resize": False}, None, None, False),
    ],
)
def test_images_have_the_size_of_the_image_processor(
    processor: dict[str, Any],
    side: int | None,
    is_square: bool | None,
    is_noted: bool,
    tmp_path: Path,
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    file = open_checkpoint(tmp_path)
    assert file_image_size(HUGGING_FACE, file) == side
    assert file_options(HUGGING_FACE, file).get("square_images") is is_square
    assert bool(processor_note(file.metadata, 800)) is is_noted
