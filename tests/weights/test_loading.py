"""Weights of Conditional DETR, and the steps of loading that all layouts share."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.file_format import KEY, file_stamp
from groupdetr.checkpoints.layout import Renamed, rename
from groupdetr.checkpoints.native import save, unique_state
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.errors import WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.loading import load_weights
from groupdetr.weights.official_conditional_detr import NAMES, OFFICIAL

from .conftest import SMALL, official_args, official_state

PRIOR = -4.59511985013459


def another(**options: object) -> DetectionTransformer:
    """Return a model with other weights, and perhaps other sizes."""
    torch.manual_seed(1)
    return replace(SMALL, **options).build()  # type: ignore[arg-type]


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = unique_state(a), unique_state(b)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


# layouts


def test_the_authors_checkpoint_fills_the_model(
    model: DetectionTransformer, official_file: Path
) -> None:
    loaded = another()
    assert not same(loaded, model)
    load_weights(loaded, official_file)
    assert same(loaded, model)


def test_the_authors_564_tensors_are_exactly_ours() -> None:
    """The names of the backbone are torchvision's, the others those that the authors publish."""
    model = ConditionalDETR(num_queries=10).build()
    body = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d).state_dict()
    theirs = official_state(model)
    assert {name for name in theirs if "body" in name} == {
        f"backbone.0.body.{n}" for n in body if n[:3] != "fc."
    }
    assert len(theirs) == 564
    converted = OFFICIAL.convert(Checkpoint(theirs, {}, "test")).state
    assert converted.keys() == unique_state(model).keys()


def test_batch_counters_of_older_batch_norms_are_dropped() -> None:
    assert rename("backbone.0.body.layer1.0.bn1.num_batches_tracked", NAMES) == Renamed(())


def test_our_own_file_fills_the_model(model: DetectionTransformer, tmp_path: Path) -> None:
    save(model, tmp_path / "best.safetensors", {})
    loaded = another()
    load_weights(loaded, tmp_path / "best.safetensors")
    assert same(loaded, model)


def test_a_training_state_fills_the_model(model: DetectionTransformer, tmp_path: Path) -> None:
    """It has shared modules under each of their names."""
    content = {KEY: file_stamp(), "model": model.state_dict(), "optimizer": {}}
    torch.save(content, tmp_path / "last.pt")
    loaded = another()
    load_weights(loaded, tmp_path / "last.pt")
    assert same(loaded, model)


def test_every_line_is_also_logged(official_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "groupdetr"):
        report = load_weights(another(num_groups=1), official_file)
    assert [record.message for record in caplog.records] == report.lines
    assert "the authors' Conditional DETR" in report.lines[0]
    assert report.lines[1] == "groups: 3 in the file, 1 in the model: loaded the first 1"


# names


def resave(path: Path, state: dict[str, Tensor], **others: object) -> Path:
    torch.save({"model": state, **others}, path)
    return path


def test_missing_names_are_reported(model: DetectionTransformer, tmp_path: Path) -> None:
    state = official_state(model)
    del state["transformer.decoder.norm.bias"]
    loaded = another()
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    with pytest.raises(WeightsError, match=r"the file has no decoder\.norm\.bias"):
        load_weights(loaded, resave(tmp_path / "x.pth", state, args=official_args(model)))
    assert all(torch.equal(before[name], value) for name, value in loaded.state_dict().items())


def test_ten_unknown_names_and_their_number_are_reported(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = official_state(model) | {
        f"mask_head.lay{i:02}.weight": torch.ones(1) for i in range(12)
    }
    with pytest.raises(
        WeightsError, match=r"mask_head\.lay00\.weight, .*lay09\.weight, \.\.\. \(12 in all\)"
    ):
        load_weights(another(), resave(tmp_path / "x.pth", state, args=official_args(model)))


def test_another_backbone_is_reported(model: DetectionTransformer, tmp_path: Path) -> None:
    state = official_state(model) | {"backbone.0.body.layer3.22.conv1.weight": torch.ones(1)}
    with pytest.raises(
        WeightsError, match=r"the model has no backbone\.network\.layer3\.22\.conv1\.weight"
    ):
        load_weights(another(), resave(tmp_path / "x.pth", state, args=official_args(model)))


def test_an_unknown_layout_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"no known layout .* has these names: module\.neck\.weight"
    ):
        load_weights(another(), resave(tmp_path / "x.pth", {"module.neck.weight": torch.ones(1)}))


def test_an_empty_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no tensor"):
        load_weights(another(), resave(tmp_path / "x.pth", {}))


def test_another_width_is_reported(official_file: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"of another shape than the model's: .*\(24, 16\) for \(32, 16\)"
    ):
        load_weights(another(dim_feedforward=32), official_file)
    with pytest.raises(WeightsError, match="of another shape than the model's"):
        load_weights(another(channels=32), official_file)


def test_weights_that_are_not_finite_are_reported(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = official_state(model)
    state["input_proj.bias"] = state["input_proj.bias"] + torch.nan
    with pytest.raises(WeightsError, match=r"not all finite: encoder\.projection\.bias"):
        load_weights(another(), resave(tmp_path / "x.pth", state, args=official_args(model)))


# groups and queries


@pytest.mark.parametrize(("groups", "queries"), [(1, 4), (5, 2), (2, 7)])
def test_groups_and_queries_are_fitted_each_along_its_axis(
    groups: int, queries: int, model: DetectionTransformer, official_file: Path
) -> None:
    loaded = another(num_groups=groups, num_queries=queries)
    before = loaded.queries.embedding.detach().clone()
    load_weights(loaded, official_file)
    after, theirs = loaded.queries.embedding, model.queries.embedding
    k, n = min(groups, 3), min(queries, 4)
    assert torch.equal(after[:k, :n], theirs[:k, :n])
    assert torch.equal(after[0, :n], theirs[0, :n])
    assert torch.equal(after[k:], before[k:])
    assert torch.equal(after[:k, n:], before[:k, n:])


def test_new_groups_are_no_copies(official_file: Path) -> None:
    loaded = another(num_groups=6)
    load_weights(loaded, official_file)
    table = loaded.queries.embedding.flatten(1)
    distances = torch.cdist(table, table) + 1e9 * torch.eye(6)
    assert distances.min() > 1


def test_group_0_predicts_the_same_for_any_number_of_groups(
    model: DetectionTransformer, official_file: Path
) -> None:
    images = Images.from_list([torch.randn(3, 64, 48)])
    one_group, eight_groups = another(num_groups=1), another(num_groups=8)
    load_weights(one_group, official_file)
    load_weights(eight_groups, official_file)
    expected = model.eval()(images).final.logits
    assert torch.equal(one_group.eval()(images).final.logits, expected)
    assert torch.equal(eight_groups.eval()(images).final.logits, expected)


def test_a_baseline_checkpoint_is_group_0(model: DetectionTransformer, tmp_path: Path) -> None:
    """The authors' main branch has no groups, and its arguments give the number of queries."""
    state = official_state(model)
    args = official_args(model, num_queries=12)
    del args.group_detr
    loaded = another(num_queries=12)
    load_weights(loaded, resave(tmp_path / "x.pth", state, args=args))
    assert torch.equal(loaded.queries.embedding[0], state["query_embed.weight"])


def test_without_arguments_the_number_of_groups_follows_from_the_models_queries(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    path = resave(tmp_path / "x.pth", official_state(model))
    loaded = another(num_groups=1)
    load_weights(loaded, path)
    assert torch.equal(loaded.queries.embedding[0], model.queries.embedding[0])


def test_groups_that_only_the_models_queries_imply_are_reported(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """Most published files have one group, whose rows may be K*N of the model by chance."""
    path = resave(tmp_path / "x.pth", official_state(model))
    line = "its 12 query rows are: read as 3 groups of 4"
    remedy = f"are one group of 12: groupdetr import {path} --file-groups 1 (Python: file_groups=1)"
    report = load_weights(another(), path)
    assert any(line in text and remedy in text for text in report.lines)
    one_group = another()
    report = load_weights(one_group, path, file_groups=1)
    assert not any(line in text for text in report.lines)
    assert "groups: 1 in the file, 3 in the model: loaded 1, newly initialised the other 2" in (
        report.lines
    )
    stated = resave(tmp_path / "z.pth", official_state(model), args=official_args(model))
    for loaded, file in ((another(num_queries=12), path), (another(), stated)):
        assert not any(
            "does not say how many groups" in x for x in load_weights(loaded, file).lines
        )


def test_rows_that_are_no_whole_number_of_groups_need_file_groups(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    path = resave(tmp_path / "x.pth", official_state(model))
    loaded = another(num_queries=5)
    with pytest.raises(WeightsError, match="12 query rows are not a whole number of groups of 5"):
        load_weights(loaded, path)
    load_weights(loaded, path, file_groups=3)
    assert torch.equal(loaded.queries.embedding[:3, :4], model.queries.embedding)


# classes


@pytest.fixture
def coco_file(tmp_path: Path) -> tuple[Path, DetectionTransformer]:
    """A checkpoint with 91 class rows, which are COCO's category ids, and its model."""
    torch.manual_seed(2)
    model = replace(SMALL, num_classes=91).build()
    return resave(tmp_path / "coco.pth", official_state(model), args=official_args(model)), model


def test_another_number_of_classes_needs_new_head(
    coco_file: tuple[Path, DetectionTransformer],
) -> None:
    with pytest.raises(
        WeightsError, match=r"91 classes in the file, 3 in the model\n.*\n.*new_head=True"
    ):
        load_weights(another(num_classes=3), coco_file[0])


def test_91_classes_become_3_by_name(coco_file: tuple[Path, DetectionTransformer]) -> None:
    path, coco = coco_file
    model = another(num_classes=3)
    report = load_weights(model, path, new_head=True, class_names=["Zebra", "drone", "person "])
    head, theirs = model.decoder.heads[0].classify, coco.decoder.heads[0].classify
    assert "classes: 2 rows loaded by name, 1 newly initialised" in report.lines
    for row, old in ((0, COCO_91.index("zebra")), (2, COCO_91.index("person"))):
        assert torch.equal(head.weight[row], theirs.weight[old])
        assert torch.equal(head.bias[row], theirs.bias[old])
    assert head.bias[1].item() == pytest.approx(PRIOR)
    assert 0 < head.weight[1].abs().max() <= 16**-0.5


def test_without_shared_names_a_new_head_has_the_prior(official_file: Path) -> None:
    model = another(num_classes=7)
    report = load_weights(model, official_file, new_head=True, class_names=list("abcdefg"))
    assert "classes: 0 rows loaded by name, 7 newly initialised" in report.lines
    assert torch.allclose(model.decoder.heads[0].classify.bias, torch.tensor(PRIOR))


def test_the_same_classes_in_another_order_are_reordered(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    categories = [[i, name] for i, name in enumerate("abcde")]
    save(model, tmp_path / "best.safetensors", {"categories": categories})
    with pytest.raises(WeightsError, match="class 0 is 'a' in the file, 'e' in the model"):
        load_weights(another(), tmp_path / "best.safetensors", class_names=list("edcba"))
    loaded = another()
    load_weights(loaded, tmp_path / "best.safetensors", new_head=True, class_names=list("edcba"))
    assert torch.equal(
        loaded.decoder.heads[0].classify.weight, model.decoder.heads[0].classify.weight.flip(0)
    )


def test_equal_lists_of_classes_keep_all_rows_even_unnamed_ones(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    names = ["N/A", "cat", "N/A", "dog", "N/A"]
    save(model, tmp_path / "best.safetensors", {"categories": [*enumerate(names)]})
    loaded = another()
    load_weights(loaded, tmp_path / "best.safetensors", new_head=True, class_names=names)
    assert same(loaded, model)
