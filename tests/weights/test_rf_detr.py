"""RF-DETR's checkpoints: those of Roboflow's package and of transformers."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout
from groupdetr.checkpoints.native import read
from groupdetr.detectors.rf_detr import RFDETR
from groupdetr.errors import WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import experiment, recipe_from_dict
from groupdetr.structures.images import Images
from groupdetr.structures.predictions import Predictions
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.conversion import convert_checkpoint, file_categories
from groupdetr.weights.huggingface_rf_detr import HUGGING_FACE_RF_DETR_MODULES
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights
from groupdetr.weights.roboflow_rf_detr import (
    MODELS,
    ROBOFLOW_RF_DETR,
    ROBOFLOW_RF_DETR_SEG,
    SEGMENTATION_MODELS,
    categories,
    describe,
)
from groupdetr.weights.writing import all_groups_state, with_unused_class
from groupdetr.weights.writing import describe as describe_recipe

from .windowed_vit import (
    CLASSES,
    GROUPS,
    QUERIES,
    largest_difference,
    randomised,
    rf_detr,
    save_folder,
)

SMALL = RFDETR(
    num_classes=CLASSES,
    num_groups=GROUPS,
    num_queries=QUERIES,
    channels=32,
    num_heads=2,
    cross_attention_heads=4,
    decoder_layers=2,
    dim_feedforward=16,
    vit_width=24,
    vit_depth=3,
    vit_heads=6,
    global_blocks=(1,),
    map_blocks=(0, 2),
    position_grid=6,
    num_windows=3,
)
CLASS_BIAS = "decoder.heads.0.classify.bias"
NAMES = ["cat", "dog", "space ship"]
# What the training of Roboflow's package writes beside the weights, as far as it matters here
TRAINING: dict[str, Any] = {"dataset_file": "roboflow", "class_names": NAMES}
CONFIG: dict[str, Any] = {
    "num_classes": 3,
    "out_feature_indexes": [1, 3],
    "num_windows": 3,
    "sa_nheads": 2,
    "ca_nheads": 4,
    "num_select": 300,
    "resolution": 96,
    "encoder": "dinov2_windowed_small",
}


@pytest.fixture(scope="module")
def model() -> DetectionTransformer:
    return build(SMALL)


def build(recipe: RFDETR) -> DetectionTransformer:
    model = recipe.build()
    randomised(model)
    return model


def roboflow_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights of all groups under Roboflow's names, with the buffer of key points."""
    state = ROBOFLOW_RF_DETR.revert(all_groups_state(model, ROBOFLOW_RF_DETR, "here"))
    return {**state, "_kp_active_mask": torch.zeros(0, 0, dtype=torch.bool)}


def write(path: Path, state: dict[str, Tensor], **others: Any) -> Path:
    """Write a file as Roboflow's training does, with the weights twice, for Lightning."""
    content = {
        "model": state,
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "args": TRAINING,
        "model_config": CONFIG,
    }
    torch.save({**content, **others}, path)
    return path


@torch.no_grad()
def forward(model: DetectionTransformer) -> Predictions:
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(1, 96, 96, dtype=torch.bool)
    return model.eval()(Images(pixels, padding, False)).final


@pytest.mark.parametrize(
    ("architecture", "preset"),
    [
        ("RfDetrForObjectDetection", "rf-detr-nano"),
        ("RfDetrForInstanceSegmentation", "rf-detr-seg-nano"),
    ],
)
def test_a_folder_of_transformers_predicts_the_same(
    architecture: str, preset: str, tmp_path: Path
) -> None:
    theirs = rf_detr(architecture)
    save_folder(theirs, tmp_path / "folder")
    import_weights(tmp_path / "folder", tmp_path / "x.safetensors", preset)
    metadata = read(tmp_path / "x.safetensors")[1]
    recipe = recipe_from_dict(metadata["recipe"])
    assert (recipe.num_groups, recipe.num_queries) == (GROUPS, QUERIES)
    assert metadata["imgsz"] == 64  # that of the table of positions
    ours = recipe.build()
    load_weights(ours, tmp_path / "x.safetensors")
    # Of a square, because transformers confuses the height and the width of others. The positions
    # are interpolated.
    assert largest_difference(theirs, ours, height=128) < 1e-4


def test_names_of_modules_in_memory_are_read_as_those_of_files(tmp_path: Path) -> None:
    theirs = rf_detr()
    _, in_file = convert_checkpoint(save_folder(theirs, tmp_path / "folder"))
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    layout, in_memory = convert_checkpoint(tmp_path / "memory.pth")
    assert layout is HUGGING_FACE_RF_DETR_MODULES
    assert in_memory.state.keys() == in_file.state.keys()
    for name, value in in_file.state.items():
        assert torch.equal(in_memory.state[name], value), name


def test_91_rows_in_a_folder_of_transformers_are_those_of_coco(tmp_path: Path) -> None:
    save_folder(rf_detr(num_labels=91), tmp_path / "folder")
    layout, file = convert_checkpoint(tmp_path / "folder")
    assert layout.categories(file.metadata)[18] == (18, "dog")


def test_a_file_of_the_training_of_three_classes_gives_the_detector(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """Its class head has four rows: the last one is no class."""
    file = write(tmp_path / "checkpoint_best_total.pth", roboflow_state(model))
    report = import_weights(file, tmp_path / "x.safetensors", "rf-detr-nano")
    # The same weights under two entries are no choice.
    assert not any("state_dict" in line for line in report.lines)
    state, metadata = read(tmp_path / "x.safetensors")
    assert replace(recipe_from_dict(metadata["recipe"]), preset="") == SMALL
    assert metadata["categories"] == [*([row, name] for row, name in enumerate(NAMES)), [3, "N/A"]]
    assert metadata["imgsz"] == 96
    for name, value in model.state_dict().items():
        if name in state:
            assert torch.equal(state[name], value), name


def test_a_row_that_is_no_class_is_added_for_roboflows_code(tmp_path: Path) -> None:
    """Its package calls the last row of a head background."""
    ours = build(replace(SMALL, num_classes=3))
    classes = list(enumerate(NAMES, start=1))
    state = all_groups_state(ours, ROBOFLOW_RF_DETR, "here")
    extended = with_unused_class(state, ours, ROBOFLOW_RF_DETR, classes)
    described = describe(describe_recipe(ours.recipe, GROUPS, classes, 96))
    assert (described["num_classes"], described["class_names"]) == (3, NAMES)
    content = {"model": ROBOFLOW_RF_DETR.revert(extended), "args": described}
    torch.save(content, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "x.safetensors", "rf-detr-nano")
    metadata = read(tmp_path / "x.safetensors")[1]
    assert metadata["categories"] == [*([id, name] for id, name in classes), [4, "N/A"]]
    again = recipe_from_dict(metadata["recipe"]).build()
    load_weights(again, tmp_path / "x.safetensors")
    # The ids of a data set may be texts.
    texts = {"categories": [["a", "cat"], ["b", "dog"], ["c", "hen"]]}
    named = file_categories(ROBOFLOW_RF_DETR, Checkpoint({}, texts, "here"), 4)
    assert named == [("a", "cat"), ("b", "dog"), ("c", "hen"), (0, "N/A")]
    # No proposal is another one because of it.
    final, expected = forward(again), forward(ours)
    assert torch.equal(final.boxes, expected.boxes)
    assert torch.equal(final.logits[..., :3], expected.logits)
    # The rows of COCO have no such row, and those of an import have it already.
    for known in (list(enumerate(COCO_91)), [*classes, (4, "N/A")]):
        assert with_unused_class(state, ours, ROBOFLOW_RF_DETR, known).keys() == state.keys()
        assert with_unused_class(state, ours, ROBOFLOW_RF_DETR, known)[CLASS_BIAS].shape == (3,)


def test_a_file_of_lightning_is_read(model: DetectionTransformer, tmp_path: Path) -> None:
    """With the names of a compiled module."""
    state = {f"model._orig_mod.{name}": value for name, value in roboflow_state(model).items()}
    content = {"state_dict": state, "hyper_parameters": TRAINING, "optimizer_states": []}
    torch.save({**content, "model_config": CONFIG}, tmp_path / "last.ckpt")
    layout, file = convert_checkpoint(tmp_path / "last.ckpt")
    assert layout is ROBOFLOW_RF_DETR
    assert layout.categories(file.metadata) == list(enumerate(NAMES))
    assert torch.equal(
        file.state["decoder.norm.weight"],
        model.decoder.norm.weight,  # type: ignore[union-attr]
    )


def test_classes_are_named_by_what_the_file_says() -> None:
    coco = list(enumerate(COCO_91))
    names = [name for name in COCO_91 if name != "N/A"]
    assert categories({}) == coco
    # The published files have COCO's 80 names for 91 rows.
    assert categories({"class_names": names, "num_classes": 90}) == coco
    assert categories({"class_names": names, "num_classes": 80}) == list(enumerate(names))
    # Rows of an annotation file that was not renumbered have other ids than positions.
    assert categories({"class_names": NAMES, "dataset_file": "coco"}) == []
    assert categories({"class_names": {1: "cat", 3: "dog"}}) == [
        *((0, "N/A"), (1, "cat"), (2, "N/A"), (3, "dog"))
    ]


def test_rows_of_classes_are_loaded_by_name(model: DetectionTransformer, tmp_path: Path) -> None:
    file = write(tmp_path / "x.pth", roboflow_state(model))
    other = replace(SMALL, num_classes=2).build()
    report = load_weights(other, file, new_head=True, class_names=["Dog", "bird"])
    assert "classes: 1 rows loaded by name, 1 newly initialised" in report.lines
    dog = NAMES.index("dog")
    head, their_head = other.decoder.heads[0].classify, model.decoder.heads[0].classify
    assert torch.equal(head.weight[0], their_head.weight[dog])
    for ours, theirs in zip(other.queries.heads.classify.bias, model.queries.heads.classify.bias):
        assert torch.equal(ours[0], theirs[dog])


def test_a_table_of_positions_of_another_size_is_refused_with_the_size_to_choose(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.pth", roboflow_state(model))
    with pytest.raises(WeightsError, match="6 x 6 patches in the file, 8 x 8 in the") as refused:
        load_weights(replace(SMALL, position_grid=8).build(), file)
    assert "--set position_grid=6" in refused.value.remedy


@pytest.mark.parametrize("name", [*MODELS.values(), *SEGMENTATION_MODELS.values()])
def test_the_preset_follows_from_the_sizes_of_the_tensors(name: str) -> None:
    with torch.device("meta"):
        state = dict(experiment(name).recipe.build().state_dict())
    layout = ROBOFLOW_RF_DETR_SEG if "seg" in name else ROBOFLOW_RF_DETR
    assert layout.preset(Checkpoint(state, {}, "here")) == name


def test_other_positions_leave_two_presets_unless_the_file_names_one() -> None:
    """Medium and large differ in nothing else, and images may have had any size."""
    with torch.device("meta"):
        recipe = experiment("rf-detr-large").recipe.with_options(position_grid=40)
        state = dict(recipe.build().state_dict())
    with pytest.raises(WeightsError, match="those of rf-detr-medium and rf-detr-large"):
        ROBOFLOW_RF_DETR.preset(Checkpoint(state, {}, "here"))
    named = Checkpoint(state, {"model_name": "RFDETRLarge"}, "here")
    assert ROBOFLOW_RF_DETR.preset(named) == "rf-detr-large"


def test_a_vision_transformer_of_another_depth_is_that_of_no_preset() -> None:
    with torch.device("meta"):
        recipe = experiment("rf-detr-nano").recipe.with_options(
            vit_depth=8, map_blocks=(2, 5), global_blocks=(3, 6)
        )
        state = dict(recipe.build().state_dict())
    with pytest.raises(WeightsError, match=r"vit_depth=8, .*no model has them"):
        ROBOFLOW_RF_DETR.preset(Checkpoint(state, {}, "here"))


@pytest.mark.parametrize(
    ("patch", "metadata", "others", "what"),
    [
        (20, {}, (), r"RF-DETR-2XL for boxes, whose licence \(PML 1\.0\)"),
        (16, {"model_name": "RFDETR2XLarge"}, (), r"licence \(PML 1\.0\)"),
        (12, {}, ("keypoint_head.mlp.weight",), "key points"),
    ],
)
def test_what_this_library_leaves_out_is_refused(
    patch: int, metadata: dict[str, Any], others: tuple[str, ...], what: str
) -> None:
    patch_conv = "backbone.0.encoder.encoder.embeddings.patch_embeddings.projection.weight"
    state = {name: torch.zeros(1) for name in others} | {patch_conv: torch.ones(8, 3, patch, patch)}
    with pytest.raises(WeightsError, match=what):
        ROBOFLOW_RF_DETR.convert(Checkpoint(state, metadata, "here"))


def test_adapters_are_refused_with_the_way_to_merge_them(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    encoder, wrapped = "backbone.0.encoder.", "backbone.0.encoder.base_model.model."
    state = {name.replace(encoder, wrapped): value for name, value in roboflow_state(model).items()}
    with pytest.raises(WeightsError, match=r"low-rank adapters \(LoRA\)") as refused:
        load_weights(SMALL.build(), write(tmp_path / "x.pth", state))
    assert f"from_checkpoint({str(tmp_path / 'x.pth')!r})" in refused.value.remedy


def test_arguments_of_a_namespace_of_pythons_types_are_read(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.pth", roboflow_state(model), args=SimpleNamespace(**TRAINING))
    assert convert_checkpoint(file)[1].metadata["class_names"] == NAMES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_config", "training_config", "preset", "layout"),
    [
        ("RFDETRNanoConfig", "TrainConfig", "rf-detr-nano", ROBOFLOW_RF_DETR),
        (
            "RFDETRSegNanoConfig",
            "SegmentationTrainConfig",
            "rf-detr-seg-nano",
            ROBOFLOW_RF_DETR_SEG,
        ),
    ],
)
def test_roboflows_package_predicts_the_same_and_takes_the_weights_back(
    model_config: str, training_config: str, preset: str, layout: Layout, tmp_path: Path
) -> None:
    """Its smallest backbone has 22 million parameters."""
    rfdetr = pytest.importorskip("rfdetr", reason="rfdetr is not installed")
    from rfdetr.models import build_model_from_config

    sizes = {"num_queries": QUERIES, "group_detr": GROUPS, "num_classes": 3, "dec_layers": 2}
    images = {"resolution": 96, "positional_encoding_size": 8, "num_windows": 2}
    config = getattr(rfdetr.config, model_config)(
        **sizes, **images, pretrain_weights="none.pth", device="cpu"
    )
    training = getattr(rfdetr.config, training_config)(
        dataset_dir=str(tmp_path), output_dir=str(tmp_path)
    )
    theirs = build_model_from_config(config, training)
    randomised(theirs)
    content = {"model": theirs.state_dict(), "args": TRAINING, "model_config": config.model_dump()}
    torch.save(content, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "x.safetensors", preset)
    ours = recipe_from_dict(read(tmp_path / "x.safetensors")[1]["recipe"]).build()
    load_weights(ours, tmp_path / "x.safetensors")

    def forward(pixels: Tensor) -> SimpleNamespace:
        outputs = theirs(pixels)
        return SimpleNamespace(
            logits=outputs["pred_logits"],
            pred_boxes=outputs["pred_boxes"],
            pred_masks=outputs.get("pred_masks"),
        )

    assert largest_difference(forward, ours, height=96, width=96) < 1e-4  # type: ignore[arg-type]
    written = layout.revert(all_groups_state(ours, layout, "here"))
    written["_kp_active_mask"] = theirs.state_dict()["_kp_active_mask"]
    for name, value in theirs.state_dict().items():
        if "mask_token" not in name:
            assert torch.equal(written[name], value), name
    theirs.load_state_dict(written, strict=True)


def test_the_remedy_for_other_sizes_makes_the_weights_fit(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.pth", roboflow_state(model))
    nano = experiment("rf-detr-nano").recipe.with_options(num_classes=CLASSES)
    with pytest.raises(WeightsError, match="give rf-detr-nano the sizes of the file") as error:
        load_weights(nano.build(), file)
    options = shlex.split(str(error.value.remedy).partition("--set ")[2].partition(" (Python")[0])
    fields = {name: json.loads(value) for name, value in (text.split("=") for text in options)}
    smaller = nano.with_options(**fields, num_groups=GROUPS, num_queries=QUERIES).build()
    load_weights(smaller, file)
    assert torch.equal(forward(smaller).logits, forward(model).logits)
