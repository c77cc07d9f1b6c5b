"""PaddleDetection's checkpoints of Group DINO, with all of their groups."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.native import read, unique_state
from groupdetr.detectors.tiny import TinyViTDINO
from groupdetr.errors import UsageError, WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import experiment
from groupdetr.weights.conversion import LAYOUTS
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights
from groupdetr.weights.paddledetection_dino import PADDLEDETECTION_DINO
from groupdetr.weights.writing import all_groups_state, find_target
from tests.parity.by_rule import read_golden

from .paddle import group_dino_arrays, write_pdparams

GROUPS, QUERIES = 3, 6
SMALL = TinyViTDINO(
    num_classes=80,
    num_groups=GROUPS,
    num_queries=QUERIES,
    shared_heads=False,
    labels_per_group=True,
    eps=1e-5,
)
TINY = "dino-vit-tiny"
LABELS = "queries.labels.weight"
CONTENT = "queries.matching.embedding"
R50 = read_golden("group_dino_r50.json")["shapes"]
SMALL_VIT = read_golden("group_dino_vit.json")["shapes"]
Shapes = dict[str, list[int]]


# Names and shapes of the published files


def group_shapes() -> Shapes:
    """Return the names and shapes of eleven groups of 900 queries, and those of the decoder.

    The file of golden values has three groups of 50 queries.
    """
    shapes = {}
    for name, shape in R50.items():
        sizes = [900 if size == 50 else size for size in shape]
        shapes[name] = sizes
        for group in range(3, 11):
            # The lists of the groups after group 0, and the list of all groups
            shapes[re.sub(r"(_dual|_dq|_groups)\.1\.", rf"\1.{group - 1}.", name)] = sizes
            shapes[re.sub(r"(enc_output)\.2\.", rf"\1.{group}.", name)] = sizes
    return shapes


def vit_shapes(
    width: int, depth: int, num_heads: int, global_blocks: Sequence[int], channels: int
) -> Shapes:
    """Return the names and shapes of a ViT for images of 1024 pixels, and of its pyramid."""
    shapes = {**linear("backbone.patch_embed.proj", [width, 3, 16, 16], width)}
    for i in range(depth):
        block = f"backbone.blocks.{i}"
        window = 64 if i in global_blocks else 14  # side, in patches
        for axis in "hw":
            shapes[f"{block}.attn.rel_pos_{axis}"] = [2 * window - 1, width // num_heads]
        for norm in ("norm1", "norm2"):
            shapes |= linear(f"{block}.{norm}", [width], width)
        shapes |= linear(f"{block}.attn.qkv", [width, 3 * width], 3 * width)
        shapes |= linear(f"{block}.attn.proj", [width, width], width)
        shapes |= linear(f"{block}.mlp.fc1", [width, 4 * width], 4 * width)
        shapes |= linear(f"{block}.mlp.fc2", [4 * width, width], width)
    shapes |= linear("neck.simfp_3.0", [width, width // 2, 2, 2], width // 2)
    # level -> the number of its first convolution, and the channels that it reads
    for level, (first, inputs) in {3: (1, width // 2), 4: (0, width), 5: (1, width)}.items():
        name = f"neck.simfp_{level}"
        shapes[f"{name}.{first}.weight"] = [channels, inputs, 1, 1]
        shapes[f"{name}.{first + 2}.weight"] = [channels, channels, 3, 3]
        for norm in (first + 1, first + 3):
            shapes |= linear(f"{name}.{norm}", [channels], channels)
    return shapes


def linear(name: str, weight: list[int], outputs: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": [outputs]}


def vit_huge_shapes() -> Shapes:
    shapes = vit_shapes(1280, 32, 16, (7, 15, 23, 31), 256)
    for name, shape in group_shapes().items():
        if not name.startswith(("backbone.", "transformer.input_proj.")):
            shapes[name] = shape
    return shapes


def test_the_names_of_the_vit_are_those_of_the_golden_values() -> None:
    assert vit_shapes(64, 4, 4, (1, 3), 64) == SMALL_VIT


def test_the_file_with_resnet_50_has_718_tensors_of_52_million_numbers() -> None:
    shapes = group_shapes()
    assert len(shapes) == 718
    assert sum(math.prod(shape) for shape in shapes.values()) == 23_561_152 + 28_898_964


@pytest.mark.parametrize("preset", ["group-dino-r50", "group-dino-vit-h"])
def test_every_tensor_of_the_published_files_has_its_place_in_the_preset(preset: str) -> None:
    """Without memory: ViT-Huge has 2.6 GB of parameters."""
    shapes = group_shapes() if preset == "group-dino-r50" else vit_huge_shapes()
    theirs = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    file = PADDLEDETECTION_DINO.convert(Checkpoint(theirs, {}, "published"))
    assert PADDLEDETECTION_DINO.preset(file) == preset
    recipe = experiment(preset).recipe
    options = PADDLEDETECTION_DINO.options(file)
    assert recipe.with_options(**options) == recipe
    with torch.device("meta"):
        model = replace(recipe, num_classes=80).build()
    expected = {name: value.shape for name, value in unique_state(model).items()}
    assert {name: value.shape for name, value in file.state.items()} == expected


# Loading


@pytest.fixture(scope="module")
def model() -> DetectionTransformer:
    torch.manual_seed(0)
    model = SMALL.build().eval()
    for name, value in model.state_dict().items():
        if "rel_pos" in name or ".norm" in name:
            value.add_(0.1 * torch.randn_like(value))  # initially zeros and ones
    # The row "no object", which the file does not have
    model.state_dict()[LABELS][:, -1] = 0.0
    return model


@pytest.fixture(scope="module")
def file(model: DetectionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paddle")
    return write_pdparams(folder / "group_dino.pdparams", group_dino_arrays(model), protocol=2)


def loaded(file: Path, **options: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Load the file into a model with other options, and return its weights and the report."""
    other = SMALL.with_options(**options).build()
    report = load_weights(other, file)
    return unique_state(other), report.lines


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_no_other_layout_fits_the_file(model: DetectionTransformer) -> None:
    names = dict.fromkeys(group_dino_arrays(model), torch.zeros(()))
    assert [layout for layout in LAYOUTS if layout.fits(names)] == [PADDLEDETECTION_DINO]


def test_the_weights_of_all_groups_are_loaded(model: DetectionTransformer, file: Path) -> None:
    state, report = loaded(file)
    assert_equal(state, unique_state(model))
    assert report[0].endswith(f"PaddleDetection's Group DINO, {len(state)} tensors")


def test_the_table_writes_the_names_of_the_file(model: DetectionTransformer) -> None:
    arrays = group_dino_arrays(model)
    state = all_groups_state(model, PADDLEDETECTION_DINO, "here")
    theirs = PADDLEDETECTION_DINO.revert(state)
    assert_equal(theirs, {name: torch.from_numpy(array) for name, array in arrays.items()})


def test_fewer_groups_and_queries_are_the_first_ones(
    model: DetectionTransformer, file: Path
) -> None:
    state, report = loaded(file, num_groups=2, num_queries=4)
    ours = model.state_dict()
    assert torch.equal(state[CONTENT], ours[CONTENT][:2, :4])
    assert torch.equal(state[LABELS], ours[LABELS][:2])
    assert "groups: 3 in the file, 2 in the model: loaded the first 2" in report


def test_more_groups_and_queries_are_newly_initialised(
    model: DetectionTransformer, file: Path
) -> None:
    state, report = loaded(file, num_groups=5, num_queries=9)
    ours = model.state_dict()
    assert torch.equal(state[CONTENT][:3, :6], ours[CONTENT])
    assert torch.equal(state[LABELS][:3], ours[LABELS])
    assert not torch.equal(state[LABELS][3], state[LABELS][4])
    line = "groups: 3 in the file, 5 in the model: loaded 3, newly initialised the other 2"
    assert line in report


def test_the_rows_of_new_classes_are_found_by_name_in_every_group(
    model: DetectionTransformer, file: Path
) -> None:
    """Rows are positions among the 80 classes: toothbrush, COCO's number 90, is the last one."""
    other = SMALL.with_options(num_classes=2).build()
    report = load_weights(other, file, new_head=True, class_names=("robot", "toothbrush"))
    state, ours = other.state_dict(), model.state_dict()
    for name in ("queries.matching.heads.classify.weight", LABELS):
        assert torch.equal(state[name][:, 1], ours[name][:, 79])
    assert "classes: 1 rows loaded by name, 1 newly initialised" in report.lines


def test_labels_of_one_group_fill_the_first_of_several_tables(file: Path, tmp_path: Path) -> None:
    """A detector whose groups share the labels gives them to group 0 of one with a table each."""
    shared = SMALL.with_options(num_groups=1, labels_per_group=False).build()
    state = unique_state(shared)
    other = SMALL.build()
    before = other.state_dict()[LABELS].clone()
    torch.save(state, tmp_path / "shared.pth")
    load_weights(other, tmp_path / "shared.pth")
    assert torch.equal(other.state_dict()[LABELS][0], state[LABELS])
    assert torch.equal(other.state_dict()[LABELS][1:], before[1:])


def test_an_import_keeps_all_groups_and_has_cocos_categories(
    model: DetectionTransformer, file: Path, tmp_path: Path
) -> None:
    import_weights(file, tmp_path / "out.safetensors", TINY)
    state, metadata = read(tmp_path / "out.safetensors")
    recipe = metadata["recipe"]
    assert (recipe["num_groups"], recipe["num_queries"]) == (GROUPS, QUERIES)
    assert recipe["labels_per_group"]
    assert recipe["eps"] == 1e-5
    assert len(metadata["categories"]) == 80
    assert metadata["categories"][79] == [90, "toothbrush"]
    assert_equal(state, unique_state(model))


def test_a_file_that_lacks_a_tensor_of_a_group_is_refused(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    arrays = group_dino_arrays(model)
    del arrays["transformer.enc_score_head_dq.1.bias"]
    file = write_pdparams(tmp_path / "incomplete.pdparams", arrays)
    with pytest.raises(WeightsError, match=r"3 groups, but no .*enc_score_head_dq\.1\.bias"):
        load_weights(SMALL.build(), file)


def test_it_is_not_written_in_the_authors_format() -> None:
    """Their DINO clamps boxes at another value, and has one head for all layers."""
    with pytest.raises(UsageError, match=r"the authors' DINO has eps 0\.001"):
        find_target(experiment("group-dino-r50").recipe, "official", "here")


def test_the_error_for_another_model_names_the_one_that_the_file_is_of(file: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        load_weights(SMALL.with_options(shared_heads=True).build(), file)
    assert "train DATA --model group-dino-vit-h --weights" in refused.value.remedy
