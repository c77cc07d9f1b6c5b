"""Checkpoints of Mask2Former as its authors and detectron2 write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.native import read, save, unique_state
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.errors import WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import recipe_from_dict
from groupdetr.structures.images import Images
from groupdetr.structures.predictions import Predictions
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.huggingface_mask2former import options
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

from .mask2former import mask2former_state, write_pickle
from .test_loading import same

SMALL = Mask2Former(
    num_classes=5,
    num_groups=3,
    num_queries=4,
    channels=32,
    num_heads=2,
    encoder_layers=2,
    decoder_layers=3,
    encoder_dim_feedforward=40,
    dim_feedforward=24,
    num_points=3,
    num_samples=16,
)


@pytest.fixture(scope="module")
def model() -> DetectionTransformer:
    torch.manual_seed(0)
    return SMALL.build().eval()


@pytest.fixture(scope="module")
def images() -> Images:
    torch.manual_seed(1)
    return Images.from_list([torch.randn(3, 64, 96), torch.randn(3, 96, 60)])


@pytest.fixture(scope="module")
def file(model: DetectionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with 3 groups of 4 queries, which has no metadata that says so."""
    return write_pickle(
        tmp_path_factory.mktemp("official") / "model_final.pkl", mask2former_state(model)
    )


def another(**options: Any) -> DetectionTransformer:
    torch.manual_seed(2)
    return replace(SMALL, **options).build().eval()


@torch.no_grad()
def predict(model: DetectionTransformer, images: Images) -> Predictions:
    return model(images).final


# names


def published() -> Iterator[str]:
    """Yield the names of model_final_3c8ec9.pkl, R50 with 50 epochs."""
    norm, both = ("weight", "bias", "running_mean", "running_var"), ("weight", "bias")
    convs = ["stem.conv1"]
    for stage, blocks in {2: 3, 3: 4, 4: 6, 5: 3}.items():
        convs += [f"res{stage}.{block}.conv{i}" for block in range(blocks) for i in (1, 2, 3)]
        convs += [f"res{stage}.0.shortcut"]
    for conv in convs:
        yield from (
            f"backbone.{conv}.{part}" for part in ("weight", *(f"norm.{part}" for part in norm))
        )
    yield "criterion.empty_weight"
    pixels = ["mask_features", "adapter_1.norm", "layer_1.norm"]
    pixels += [f"input_proj.{level}.{part}" for level in range(3) for part in (0, 1)]
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for i in range(6):
        layer = (
            *(f"self_attn.{part}" for part in attention),
            "norm1",
            "linear1",
            "linear2",
            "norm2",
        )
        pixels += [f"transformer.encoder.layers.{i}.{part}" for part in layer]
    yield from (f"sem_seg_head.pixel_decoder.{name}.{part}" for name in pixels for part in both)
    yield from (f"sem_seg_head.pixel_decoder.{name}.weight" for name in ("adapter_1", "layer_1"))
    yield "sem_seg_head.pixel_decoder.transformer.level_embed"
    predictor = ["class_embed", "decoder_norm", *(f"mask_embed.layers.{i}" for i in range(3))]
    for i in range(9):
        predictor += [
            f"transformer_ffn_layers.{i}.{part}" for part in ("linear1", "linear2", "norm")
        ]
        for kind, inner in (("self", "self_attn"), ("cross", "multihead_attn")):
            name = f"transformer_{kind}_attention_layers.{i}"
            predictor += [f"{name}.{inner}.out_proj", f"{name}.norm"]
            yield from (f"sem_seg_head.predictor.{name}.{inner}.in_proj_{part}" for part in both)
    yield from (f"sem_seg_head.predictor.{name}.{part}" for name in predictor for part in both)
    yield from (
        f"sem_seg_head.predictor.{name}.weight"
        for name in ("query_feat", "query_embed", "level_embed")
    )


def test_the_558_published_tensors_are_exactly_ours(tmp_path: Path) -> None:
    full = Mask2Former().build()
    state = mask2former_state(full)
    assert [*sorted(state)] == [*sorted(published())]
    assert len(state) == 558
    torch.manual_seed(1)
    loaded = Mask2Former().build()
    load_weights(loaded, write_pickle(tmp_path / "model_final.pkl", state))
    assert same(loaded, full)


def test_a_pickle_of_arrays_fills_the_model(
    model: DetectionTransformer, file: Path, images: Images
) -> None:
    loaded = another()
    assert not same(loaded, model)
    report = load_weights(loaded, file, file_groups=3)
    assert same(loaded, model)
    assert report.lines == [
        f"{file}: read as the authors' Mask2Former, {len(unique_state(model))} tensors"
    ]
    ours, expected = predict(loaded, images), predict(model, images)
    assert torch.equal(ours.logits, expected.logits)
    assert torch.equal(ours.masks.full(), expected.masks.full())


def test_a_training_state_of_tensors_fills_the_model(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "model_0000099.pth"
    torch.save(
        {"model": mask2former_state(model), "optimizer": {"state": {}}, "iteration": 99}, path
    )
    loaded = another()
    load_weights(loaded, path)
    assert same(loaded, model)


def test_older_files_are_read(model: DetectionTransformer, tmp_path: Path) -> None:
    older = {
        name.replace(".query_feat.", ".static_query.").replace(".pixel_decoder.", "."): value
        for name, value in mask2former_state(model).items()
    }
    older |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    loaded = another()
    load_weights(loaded, write_pickle(tmp_path / "old.pkl", older))
    assert same(loaded, model)


def test_a_missing_bias_of_classes_and_no_object_is_reported(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = mask2former_state(model)
    del state["sem_seg_head.predictor.class_embed.bias"]
    with pytest.raises(WeightsError, match=r"the file has no decoder\.heads\.0\.classify\.bias"):
        load_weights(another(), write_pickle(tmp_path / "x.pkl", state))


# groups


def test_an_import_with_one_group_keeps_group_0(
    model: DetectionTransformer, file: Path, images: Images, tmp_path: Path
) -> None:
    out = tmp_path / "one.safetensors"
    report = import_weights(file, out, file_groups=3, num_groups=1, num_heads=2)
    assert "groups: 3 in the file, 1 in the model: loaded the first 1" in report.lines
    state, metadata = read(out)
    for table in ("embedding", "position"):
        assert torch.equal(state[f"queries.{table}"], getattr(model.queries, table)[:1])
    one = recipe_from_dict(metadata["recipe"]).build().eval()
    load_weights(one, out)
    ours, expected = predict(one, images), predict(model, images)
    assert torch.equal(ours.logits, expected.logits)
    assert torch.equal(ours.masks.full(), expected.masks.full())


def test_rows_that_are_no_whole_number_of_groups_need_file_groups(
    file: Path, tmp_path: Path
) -> None:
    """Published files have 100 rows, and no metadata that says so."""
    with pytest.raises(
        WeightsError,
        match=r"12 query rows are not a whole number of groups of 100\n.*\n.*file_groups=1",
    ):
        import_weights(file, tmp_path / "out.safetensors", num_heads=2)


def test_an_import_reads_its_recipe_from_the_tensors(file: Path, tmp_path: Path) -> None:
    import_weights(file, tmp_path / "out.safetensors", file_groups=3, num_heads=2)
    metadata = read(tmp_path / "out.safetensors")[1]
    expected = replace(SMALL, preset="mask2former-r50", num_samples=Mask2Former().num_samples)
    assert recipe_from_dict(metadata["recipe"]) == expected
    assert metadata["categories"] == [[row, f"class {row}"] for row in range(5)]
    assert metadata["imgsz"] == 800


def test_the_temperature_of_the_file_is_used_by_pixel_decoder_and_its_encoder(
    tmp_path: Path, images: Images
) -> None:
    warm = another(temperature=20.0)
    save(warm, tmp_path / "warm.safetensors", {"recipe": asdict(warm.recipe)})
    loaded = another()
    report = load_weights(loaded, tmp_path / "warm.safetensors")
    assert "temperature: 20 in the file, 10000 in the model: set to 20" in report.lines
    assert torch.equal(predict(loaded, images).logits, predict(warm, images).logits)


# classes


@pytest.fixture(scope="module")
def coco() -> DetectionTransformer:
    return another(num_classes=80, num_groups=1)


@pytest.fixture(scope="module")
def coco_file(coco: DetectionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pickle(
        tmp_path_factory.mktemp("coco") / "model_final.pkl", mask2former_state(coco)
    )


def test_the_last_row_is_no_object(
    coco_file: Path, coco: DetectionTransformer, tmp_path: Path
) -> None:
    import_weights(
        coco_file, tmp_path / "out.safetensors", num_queries=4, file_groups=1, num_heads=2
    )
    state, metadata = read(tmp_path / "out.safetensors")
    ids = [id for id, name in enumerate(COCO_91) if name != "N/A"]
    assert metadata["categories"] == [[id, COCO_91[id]] for id in ids]
    theirs = mask2former_state(coco)["sem_seg_head.predictor.class_embed.weight"]
    assert torch.equal(state["decoder.heads.0.classify.weight"], theirs[:80])
    assert torch.equal(state["decoder.heads.0.no_object.weight"], theirs[80:])


def test_80_classes_become_3_by_name_and_no_object_remains(
    coco: DetectionTransformer, coco_file: Path
) -> None:
    model = another(num_classes=3, num_groups=1)
    report = load_weights(
        model, coco_file, new_head=True, class_names=["Zebra", "drone", "person "]
    )
    assert report.lines[1:] == ["classes: 2 rows loaded by name, 1 newly initialised"]
    head, theirs = model.decoder.heads[0], coco.decoder.heads[0]
    for row, old in ((0, 22), (2, 0)):
        assert torch.equal(head.classify.weight[row], theirs.classify.weight[old])
        assert torch.equal(head.classify.bias[row], theirs.classify.bias[old])
    for part in ("weight", "bias"):
        assert torch.equal(getattr(head.no_object, part), getattr(theirs.no_object, part))


def test_new_rows_of_a_softmax_have_no_prior(coco_file: Path) -> None:
    """They have torch's initialisation: weights and bias are uniform within the same bound."""
    names = [f"new class {i}" for i in range(200)]
    model = another(num_classes=200, num_groups=1)
    load_weights(model, coco_file, new_head=True, class_names=names)
    bound = 32**-0.5
    for rows in model.decoder.heads[0].classify.parameters():
        assert 0.9 * bound < rows.abs().max() <= bound
        assert rows.mean().abs() < 0.2 * bound


# Hugging Face's configuration


@pytest.mark.parametrize("other", [{"pre_norm": True}, {"activation_function": "gelu"}])
def test_a_configuration_of_another_transformer_is_refused(other: dict[str, object]) -> None:
    ours = Checkpoint({}, {"num_attention_heads": 4, "pre_norm": False}, "folder")
    assert options(ours) == {"num_heads": 4}
    with pytest.raises(WeightsError, match=next(iter(other))) as refused:
        options(Checkpoint({}, other, "folder"))
    assert refused.value.where == "folder"
