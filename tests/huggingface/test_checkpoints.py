"""Detectors with groups, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import groupdetr.huggingface as ghf
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import UsageError, WeightsError
from groupdetr.weights.conversion import with_all_groups
from groupdetr.weights.loading import count_groups
from tests.huggingface.detectors import DETECTORS, NUM_QUERIES, aligned, batch

# One family with tables of queries, one with heads for proposals, and one with groups of its own
FAMILIES = ["Conditional DETR", "RT-DETR", "LW-DETR"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_detector_is_loaded_with_all_its_groups(name: str, tmp_path: Path) -> None:
    model = ghf.with_groups(DETECTORS[name](), 3)
    model.save_pretrained(tmp_path)
    loaded = ghf.load_with_groups(tmp_path)
    assert ghf.num_groups(loaded) == 3
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_transformers_alone_loads_group_0_of_a_detector_saved_with_groups(tmp_path: Path) -> None:
    model = ghf.with_groups(DETECTORS["Conditional DETR"](), 3).eval()
    model.save_pretrained(tmp_path)
    plain, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert report["unexpected_keys"] == {"model.query_position_embeddings.other_groups"}
    inputs = {"pixel_values": batch(model)["pixel_values"]}
    assert torch.equal(aligned(plain).eval()(**inputs).logits, model(**inputs).logits)


def test_an_import_reads_all_groups(tmp_path: Path) -> None:
    """As files of the authors have them: the rows of one group after those of the other."""
    model = ghf.with_groups(DETECTORS["Conditional DETR"](), 3).train()
    model.save_pretrained(tmp_path)
    file = with_all_groups(open_checkpoint(tmp_path))
    rows = file.state["model.query_position_embeddings.weight"]
    assert torch.equal(rows, model.model.query_position_embeddings.weight)
    assert count_groups(file, len(rows), None, NUM_QUERIES) == 3
    assert not any("other_groups" in name for name in file.state)


def test_a_folder_without_groups_is_refused(tmp_path: Path) -> None:
    DETECTORS["Conditional DETR"]().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="without groups"):
        ghf.load_with_groups(tmp_path)
    with pytest.raises(UsageError, match="no config"):
        ghf.load_with_groups(tmp_path / "elsewhere")
    config = tmp_path / "config.json"
    for names in ([], ["MyDetector"]):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": names}))
        with pytest.raises(UsageError, match="does not name a class of transformers"):
            ghf.load_with_groups(tmp_path)
