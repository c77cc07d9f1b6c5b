"""LW-DETR's checkpoints: those of the authors and of transformers."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.native import read
from groupdetr.detectors.lw_detr import LWDETR
from groupdetr.errors import WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import experiment, recipe_from_dict
from groupdetr.weights.huggingface_lw_detr import HUGGING_FACE_LW_DETR
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights
from groupdetr.weights.official_lw_detr import OFFICIAL_LW_DETR, PRESETS
from groupdetr.weights.writing import all_groups_state

from .windowed_vit import (
    CLASSES,
    GROUPS,
    QUERIES,
    largest_difference,
    lw_detr,
    randomised,
    save_folder,
)

SMALL = LWDETR(
    num_classes=CLASSES,
    num_groups=GROUPS,
    num_queries=QUERIES,
    channels=32,
    num_heads=2,
    cross_attention_heads=4,
    num_points=1,
    decoder_layers=2,
    dim_feedforward=16,
    projector_levels=("P3", "P5"),
    vit_width=24,
    vit_depth=3,
    vit_heads=12,
    global_blocks=(1,),
    map_blocks=(0, 2),
    num_detections=4,
)
# The arguments of the authors' script that say the same
ARGUMENTS: dict[str, Any] = {
    "dataset_file": "custom",
    "sa_nheads": 2,
    "ca_nheads": 4,
    "num_select": 4,
    "window_block_indexes": [0, 2],
    "out_feature_indexes": [0, 2],
}


@pytest.fixture
def model() -> DetectionTransformer:
    return build(SMALL)


def build(recipe: LWDETR) -> DetectionTransformer:
    model = recipe.build()
    randomised(model)
    return model


def authors_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights of all groups under the authors' names."""
    return OFFICIAL_LW_DETR.revert(all_groups_state(model, OFFICIAL_LW_DETR, "here"))


def write(path: Path, state: dict[str, Tensor], args: dict[str, Any], **others: Any) -> Path:
    """Write a checkpoint as the authors' main.py does."""
    torch.save({"model": state, "optimizer": {}, "args": Namespace(**args), **others}, path)
    return path


@pytest.mark.parametrize(
    ("scales", "width"),
    [((1.0,), 24), ((2.0, 0.5), 24), ((2.0, 0.5), 528)],
    ids=["P4", "P3-P5", "wide"],
)
def test_a_folder_of_transformers_predicts_the_same(
    scales: tuple[float, ...], width: int, tmp_path: Path
) -> None:
    theirs = lw_detr(scales, width)
    save_folder(theirs, tmp_path / "folder")
    import_weights(tmp_path / "folder", tmp_path / "x.safetensors", "lw-detr-tiny")
    recipe = recipe_from_dict(read(tmp_path / "x.safetensors")[1]["recipe"])
    assert (recipe.num_groups, recipe.num_queries) == (GROUPS, QUERIES)
    ours = recipe.build()
    load_weights(ours, tmp_path / "x.safetensors")
    assert largest_difference(theirs, ours, height=192) < 1e-4


@pytest.mark.parametrize("width", [24, 528])
def test_transformers_takes_the_weights_of_a_detector(width: int) -> None:
    """They are written under its names. Wide maps are projected before they are upsampled."""
    ours = build(replace(SMALL, vit_width=width, num_points=2, map_blocks=(1, 2)))
    state = all_groups_state(ours, HUGGING_FACE_LW_DETR, "here")
    written = HUGGING_FACE_LW_DETR.revert(state)
    modules = HUGGING_FACE_LW_DETR.convert(
        Checkpoint(dict(lw_detr((2.0, 0.5), width).state_dict()), {}, "here")
    ).state
    read_again = HUGGING_FACE_LW_DETR.convert(Checkpoint(written, {}, "here")).state
    assert {name: value.shape for name, value in read_again.items()} == {
        name: value.shape for name, value in modules.items()
    }
    for name, value in read_again.items():
        assert torch.equal(value, state[name]), name


def test_the_authors_arguments_and_tensors_give_the_recipe(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    file = write(tmp_path / "checkpoint.pth", authors_state(model), ARGUMENTS)
    report = import_weights(file, tmp_path / "x.safetensors", "lw-detr-small")
    assert report.lines[0].endswith("read as the authors' LW-DETR, 232 tensors")
    state, metadata = read(tmp_path / "x.safetensors")
    recipe = recipe_from_dict(metadata["recipe"])
    assert replace(recipe, preset="") == SMALL
    for name, value in model.state_dict().items():
        if name in state and not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], value), name


@pytest.mark.parametrize("name", PRESETS)
def test_the_preset_follows_from_the_sizes_of_the_tensors(name: str) -> None:
    with torch.device("meta"):
        state = dict(experiment(name).recipe.build().state_dict())
    assert OFFICIAL_LW_DETR.preset(Checkpoint(state, {}, "here")) == name


def test_sizes_of_no_published_model_need_a_name(model: DetectionTransformer) -> None:
    with pytest.raises(WeightsError, match=r"vit_width=24, .*no model has them") as refused:
        OFFICIAL_LW_DETR.preset(Checkpoint(dict(model.state_dict()), {}, "here"))
    assert "--model lw-detr-tiny" in refused.value.remedy


def test_the_moving_average_is_loaded_if_the_file_has_it(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """The authors evaluate it."""
    average = authors_state(model)
    last_step = {name: torch.zeros_like(value) for name, value in average.items()}
    file = write(tmp_path / "both.pth", last_step, ARGUMENTS, ema_model=average)
    loaded = SMALL.build()
    report = load_weights(loaded, file)
    assert (
        "loaded the weights under 'ema_model'; the file has others under 'model'"
        in (report.lines[1])
    )
    assert torch.equal(loaded.queries.embedding, model.queries.embedding)
    load_weights(loaded, file, entry="model")
    assert not loaded.queries.embedding.any()


def test_groups_are_counted_by_proposal_heads_and_queries_are_kept_per_group(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """Neither the arguments nor the preset say how many groups the rows are."""
    file = write(tmp_path / "x.pth", authors_state(model), ARGUMENTS)
    fewer = replace(SMALL, num_groups=2, num_queries=4).build()
    lines = load_weights(fewer, file).lines
    assert "groups: 3 in the file, 2 in the model: loaded the first 2" in lines
    assert torch.equal(fewer.queries.embedding, model.queries.embedding[:2, :4])
    assert torch.equal(fewer.queries.learned_offset, model.queries.learned_offset[:2, :4])
    more = replace(SMALL, num_groups=4, num_queries=6).build()
    load_weights(more, file)
    assert torch.equal(more.queries.embedding[:3, :5], model.queries.embedding)
    # Rows are newly initialised, and not copies of others.
    assert not torch.equal(more.queries.embedding[3, :5], model.queries.embedding[2])
    assert not torch.equal(more.queries.embedding[0, 5], model.queries.embedding[1, 0])


def test_rows_that_are_no_groups_of_the_proposal_heads_are_refused(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = authors_state(model)
    state["query_feat.weight"] = state["query_feat.weight"][:-1]
    file = write(tmp_path / "x.pth", state, ARGUMENTS)
    with pytest.raises(WeightsError, match=r"the 14 query rows of queries\.embedding are not 3"):
        load_weights(SMALL.build(), file)
    with pytest.raises(WeightsError, match="records that it has 3 groups, not 5"):
        load_weights(
            SMALL.build(), write(tmp_path / "y.pth", authors_state(model), {}), file_groups=5
        )


def test_rows_of_objects365_are_loaded_by_name(tmp_path: Path) -> None:
    pretrained = build(replace(SMALL, num_classes=366))
    args = {**ARGUMENTS, "dataset_file": "o365"}
    file = write(tmp_path / "o365.pth", authors_state(pretrained), args)
    model = replace(SMALL, num_classes=2).build()
    report = load_weights(model, file, new_head=True, class_names=["dog", "space ship"])
    assert "classes: 1 rows loaded by name, 1 newly initialised" in report.lines
    head, their_head = model.decoder.heads[0].classify, pretrained.decoder.heads[0].classify
    dog = 93  # the category id
    assert torch.equal(head.weight[0], their_head.weight[dog])
    assert torch.equal(
        model.queries.heads.classify.weight[:, 0], pretrained.queries.heads.classify.weight[:, dog]
    )
