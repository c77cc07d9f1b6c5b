from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from groupdetr.checkpoints.layout import rename
from groupdetr.checkpoints.native import save, unique_state
from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.errors import WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.conditional_detr import NAMES, OFFICIAL
from groupdetr.weights.loading import load_weights

from .conftest import SMALL, official_args, official_state

PRIOR = -4.59511985013459


def another(**options: object) -> DetectionTransformer:
    """A model with other weights, and perhaps other sizes."""
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


def test_the_authors_564_tensors_are_all_of_ours() -> None:
    """Names and shapes of the backbone from torchvision, of the rest as the paper's authors publish them."""
    model = ConditionalDETR(num_queries=10).build()
    body = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d).state_dict()
    theirs = official_state(model)
    assert {name for name in theirs if "body" in name} == {
        f"backbone.0.body.{n}" for n in body if n[:3] != "fc."
    }
    assert len(theirs) == 564
    converted = OFFICIAL.convert(Checkpoint(theirs, {}, "test")).state
    assert converted.keys() == unique_state(model).keys()


def test_what_older_batch_norms_count_is_dropped() -> None:
    assert rename("backbone.0.body.layer1.0.bn1.num_batches_tracked", NAMES) == ()


def test_our_own_file_fills_the_model(model: DetectionTransformer, tmp_path: Path) -> None:
    save(model, tmp_path / "best.safetensors", {})
    loaded = another()
    load_weights(loaded, tmp_path / "best.safetensors")
    assert same(loaded, model)


def test_a_training_state_fills_the_model(model: DetectionTransformer, tmp_path: Path) -> None:
    """Under every name that modules have, shared ones included."""
    torch.save({"model": model.state_dict(), "optimizer": {}}, tmp_path / "last.pt")
    loaded = another()
    load_weights(loaded, tmp_path / "last.pt")
    assert same(loaded, model)


def test_every_line_is_also_logged(official_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "groupdetr"):
        report = load_weights(another(num_groups=1), official_file)
    assert [record.message for record in caplog.records] == report.lines
    assert "the authors' Conditional DETR" in report.lines[0]
    assert report.lines[1] == "groups: 3 in the file, 1 in the model: took the first 1"


# names


def resave(path: Path, state: dict[str, Tensor], **others: object) -> Path:
    torch.save({"model": state, **others}, path)
    return path


def test_missing_names_are_told(model: DetectionTransformer, tmp_path: Path) -> None:
    state = official_state(model)
    del state["transformer.decoder.norm.bias"]
    loaded = another()
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    with pytest.raises(WeightsError, match=r"the file has no decoder\.norm\.bias"):
        load_weights(loaded, resave(tmp_path / "x.pth", state, args=official_args(model)))
    assert all(torch.equal(before[name], value) for name, value in loaded.state_dict().items())


def test_unknown_names_are_told_ten_and_how_many(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = official_state(model) | {
        f"mask_head.lay{i:02}.weight": torch.ones(1) for i in range(12)
    }
    with pytest.raises(
        WeightsError, match=r"mask_head\.lay00\.weight, .*lay09\.weight, \.\.\. \(12 in all\)"
    ):
        load_weights(another(), resave(tmp_path / "x.pth", state, args=official_args(model)))


def test_another_backbone_is_told(model: DetectionTransformer, tmp_path: Path) -> None:
    state = official_state(model) | {"backbone.0.body.layer3.22.conv1.weight": torch.ones(1)}
    with pytest.raises(
        WeightsError, match=r"the model has no backbone\.network\.layer3\.22\.conv1\.weight"
    ):
        load_weights(another(), resave(tmp_path / "x.pth", state, args=official_args(model)))


def test_an_unknown_layout_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"no layout that is known here .*: module\.neck\.weight"
    ):
        load_weights(another(), resave(tmp_path / "x.pth", {"module.neck.weight": torch.ones(1)}))


def test_an_empty_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no tensor"):
        load_weights(another(), resave(tmp_path / "x.pth", {}))


def test_another_width_is_told(official_file: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"of another shape than the model's: .*\(24, 16\) for \(32, 16\)"
    ):
        load_weights(another(hidden=32), official_file)
    with pytest.raises(WeightsError, match="of another shape than the model's"):
        load_weights(another(channels=32), official_file)


def test_weights_that_are_not_finite_are_told(model: DetectionTransformer, tmp_path: Path) -> None:
    state = official_state(model)
    state["input_proj.bias"] = state["input_proj.bias"] + torch.nan
    with pytest.raises(WeightsError, match=r"not all finite: encoder\.projection\.bias"):
        load_weights(another(), resave(tmp_path / "x.pth", state, args=official_args(model)))


# groups and queries


@pytest.mark.parametrize(
    ("groups", "queries"), [(1, 4), (2, 4), (3, 2), (5, 4), (3, 7), (2, 7), (5, 2)]
)
def test_groups_and_queries_are_fitted_each_on_its_axis(
    groups: int, queries: int, model: DetectionTransformer, official_file: Path
) -> None:
    fresh = another(num_groups=groups, num_queries=queries)
    own = fresh.queries.embedding.detach().clone()
    load_weights(fresh, official_file)
    table, theirs = fresh.queries.embedding, model.queries.embedding
    k, n = min(groups, 3), min(queries, 4)
    assert torch.equal(table[:k, :n], theirs[:k, :n])
    assert torch.equal(table[0, :n], theirs[0, :n])
    assert torch.equal(table[k:], own[k:])
    assert torch.equal(table[:k, n:], own[:k, n:])


def test_new_groups_are_no_copies(official_file: Path) -> None:
    load_weights(fresh := another(num_groups=6), official_file)
    table = fresh.queries.embedding.flatten(1)
    distances = torch.cdist(table, table) + 1e9 * torch.eye(6)
    assert distances.min() > 1


def test_group_0_answers_alike_whatever_the_number_of_groups(
    model: DetectionTransformer, official_file: Path
) -> None:
    images = Images.from_list([torch.randn(3, 64, 48)])
    load_weights(one := another(num_groups=1), official_file)
    load_weights(eight := another(num_groups=8), official_file)
    answers = [m.eval()(images).answer.logits for m in (model, one, eight)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_a_baseline_checkpoint_is_group_0(model: DetectionTransformer, tmp_path: Path) -> None:
    """The authors' main branch knows no groups and says how many queries there are."""
    state = official_state(model)
    args = official_args(model, num_queries=12)
    del args.group_detr
    load_weights(fresh := another(num_queries=12), resave(tmp_path / "x.pth", state, args=args))
    assert torch.equal(fresh.queries.embedding[0], state["query_embed.weight"])


def test_without_settings_the_models_own_queries_count_the_groups(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    path = resave(tmp_path / "x.pth", official_state(model))
    load_weights(fresh := another(num_groups=1), path)
    assert torch.equal(fresh.queries.embedding[0], model.queries.embedding[0])


def test_rows_that_are_no_whole_groups_must_be_explained(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    path = resave(tmp_path / "x.pth", official_state(model))
    fresh = another(num_queries=5)
    with pytest.raises(WeightsError, match="12 query rows are no whole number of groups of 5"):
        load_weights(fresh, path)
    load_weights(fresh, path, file_groups=3)
    assert torch.equal(fresh.queries.embedding[:3, :4], model.queries.embedding)


# classes


@pytest.fixture
def coco_file(tmp_path: Path) -> tuple[Path, DetectionTransformer]:
    """91 rows, which are COCO's category ids."""
    torch.manual_seed(2)
    model = replace(SMALL, num_classes=91).build()
    return resave(tmp_path / "coco.pth", official_state(model), args=official_args(model)), model


def test_another_number_of_classes_must_be_asked_for(
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
    assert "classes: 2 rows taken by name, 1 started anew" in report.lines
    for row, old in ((0, COCO_91.index("zebra")), (2, COCO_91.index("person"))):
        assert torch.equal(head.weight[row], theirs.weight[old])
        assert torch.equal(head.bias[row], theirs.bias[old])
    assert head.bias[1].item() == pytest.approx(PRIOR)
    assert 0 < head.weight[1].abs().max() <= 16**-0.5


def test_without_names_a_new_head_starts_at_the_prior(official_file: Path) -> None:
    model = another(num_classes=7)
    report = load_weights(model, official_file, new_head=True, class_names=list("abcdefg"))
    assert "classes: 0 rows taken by name, 7 started anew" in report.lines
    assert torch.allclose(model.decoder.heads[0].classify.bias, torch.tensor(PRIOR))


def test_the_same_classes_in_another_order_are_found(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    categories = [[i, name] for i, name in enumerate("abcde")]
    save(model, tmp_path / "best.safetensors", {"categories": categories})
    with pytest.raises(WeightsError, match="class 0 is 'a' in the file, 'e' here"):
        load_weights(another(), tmp_path / "best.safetensors", class_names=list("edcba"))
    load_weights(
        loaded := another(), tmp_path / "best.safetensors", new_head=True, class_names=list("edcba")
    )
    assert torch.equal(
        loaded.decoder.heads[0].classify.weight, model.decoder.heads[0].classify.weight.flip(0)
    )


def test_the_same_classes_stay_row_for_row_even_nameless(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    names = ["N/A", "cat", "N/A", "dog", "N/A"]
    save(model, tmp_path / "best.safetensors", {"categories": [*enumerate(names)]})
    load_weights(
        loaded := another(), tmp_path / "best.safetensors", new_head=True, class_names=names
    )
    assert same(loaded, model)
