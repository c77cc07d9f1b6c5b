"""Weights of a detector whose query source and head are not of this repository.

Their parameters have names of their own and are nested in a wrapper. They are loaded because the
modules declare the axes of their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from groupdetr.checkpoints.file_format import KEY, file_stamp
from groupdetr.checkpoints.native import read, save
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.errors import UsageError, WeightsError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.modeling.decoder import Decoder
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.heads import PredictionHead
from groupdetr.modeling.module_list import ModuleList
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes
from groupdetr.modeling.queries.query_source import QuerySource
from groupdetr.registry import recipe_from_dict, recipe_to_dict
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

from .conftest import SIZES
from .test_loading import same

NEW_BIAS = -7.0  # of the classes that a file does not have


class Seeds(nn.Module):
    """The parameters of `SeedQueries`: a point and a content of every query, a scale of a group."""

    def __init__(self, num_groups: int, num_queries: int, channels: int) -> None:
        super().__init__()
        self.spot = nn.Parameter(torch.randn(num_groups, num_queries, 2))
        # Here the groups are not the first axis.
        self.look = nn.Parameter(torch.randn(channels, num_groups, num_queries))
        self.register_buffer("scale", torch.rand(num_groups))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {
            "spot": ParameterAxes((Axis.GROUP, Axis.QUERY)),
            "look": ParameterAxes((Axis.OTHER, Axis.GROUP, Axis.QUERY)),
            "scale": ParameterAxes((Axis.GROUP,)),
        }


class SeedQueries(QuerySource):
    def __init__(self, seeds: Seeds) -> None:
        super().__init__()
        self.inference_group = 0
        self.wrapper = nn.ModuleDict({"seeds": seeds})

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        seeds = self.wrapper["seeds"]
        assert isinstance(seeds, Seeds)
        groups = self.active_groups
        content = seeds.look.movedim(0, -1)[groups] * seeds.scale[groups, None, None]
        reference = seeds.spot[groups].sigmoid().unsqueeze(0)
        content = content.expand(len(memory.tokens), -1, -1, -1)
        return Queries(content, reference, content)


class SoftmaxHead(PredictionHead):
    """Classes and "no object" in one linear layer, and boxes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.predict = nn.ModuleList([nn.Linear(channels, num_classes + 1), nn.Linear(channels, 4)])

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        classes = (Axis.CLASS_OR_NO_OBJECT,)
        return {
            "predict.0.weight": ParameterAxes(classes, nn.init.zeros_),
            "predict.0.bias": ParameterAxes(
                classes, lambda bias: nn.init.constant_(bias, NEW_BIAS)
            ),
        }

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        logits, boxes = (layer(x) for layer in self.predict)
        return Predictions(logits, boxes.sigmoid())


@dataclass(frozen=True)
class OwnDETR(TinyConditionalDETR):
    """Conditional DETR with `SeedQueries` and `SoftmaxHead`."""

    def build_queries(self) -> QuerySource:
        return SeedQueries(Seeds(self.num_groups, self.num_queries, self.channels))

    def build_decoder(self) -> Decoder:
        decoder = super().build_decoder()
        heads = [self.build_head()] * self.decoder_layers
        decoder.heads = ModuleList(heads)
        return decoder

    def build_head(self) -> PredictionHead:
        return SoftmaxHead(self.channels, self.num_classes)


OWN = OwnDETR(preset="own", num_classes=5, num_groups=3, num_queries=20, **SIZES)
NAMES = ["ant", "bee", "cat", "dog", "eel"]
SPOT, LOOK, SCALE = (f"queries.wrapper.seeds.{name}" for name in ("spot", "look", "scale"))


def build(seed: int, **sizes: int) -> DetectionTransformer:
    torch.manual_seed(seed)
    return replace(OWN, **sizes).build()  # type: ignore[arg-type]


def write(model: DetectionTransformer, folder: Path) -> Path:
    path = folder / "best.safetensors"
    categories = list(enumerate(NAMES))
    save(model, path, {"recipe": recipe_to_dict(model.recipe), "categories": categories})  # type: ignore[arg-type]
    return path


def state_of(model: DetectionTransformer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def predict(model: DetectionTransformer) -> Tensor:
    image = torch.randn(3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(Images.from_list([image])).final.logits


@pytest.mark.parametrize(("file_groups", "groups"), [(3, 1), (3, 4)])
def test_groups_are_left_out_or_keep_their_initialisation(
    file_groups: int, groups: int, tmp_path: Path
) -> None:
    file_model, model = build(0, num_groups=file_groups), build(1, num_groups=groups)
    theirs, before = state_of(file_model), state_of(model)
    load_weights(model, write(file_model, tmp_path))
    loaded = model.state_dict()
    shared = min(file_groups, groups)
    for name, group_axis in ((SPOT, 0), (LOOK, 1), (SCALE, 0)):
        ours, initial = loaded[name].movedim(group_axis, 0), before[name].movedim(group_axis, 0)
        assert torch.equal(ours[:shared], theirs[name].movedim(group_axis, 0)[:shared])
        assert torch.equal(ours[shared:], initial[shared:])
    assert torch.equal(predict(model), predict(file_model))


@pytest.mark.parametrize(("file_queries", "queries"), [(20, 10), (10, 20)])
def test_queries_are_left_out_or_keep_their_initialisation(
    file_queries: int, queries: int, tmp_path: Path
) -> None:
    file_model, model = build(0, num_queries=file_queries), build(1, num_queries=queries)
    theirs, before = state_of(file_model), state_of(model)
    report = load_weights(model, write(file_model, tmp_path))
    assert any(
        line.startswith(f"queries of a group: {file_queries} in the file") for line in report.lines
    )
    loaded = model.state_dict()
    assert torch.equal(loaded[SPOT][:, :10], theirs[SPOT][:, :10])
    assert torch.equal(loaded[SPOT][:, 10:], before[SPOT][:, 10:])
    assert torch.equal(loaded[LOOK][..., :10], theirs[LOOK][..., :10])
    assert torch.equal(loaded[LOOK][..., 10:], before[LOOK][..., 10:])


def test_classes_are_loaded_by_name_and_new_ones_are_initialised_as_declared(
    tmp_path: Path,
) -> None:
    """ "No object" stays the last row."""
    file_model, model = build(0), build(1, num_classes=3)
    path = write(file_model, tmp_path)
    with pytest.raises(WeightsError, match="5 classes in the file, 3 in the model"):
        load_weights(model, path)
    load_weights(model, path, new_head=True, class_names=["Eel", "fox", "bee"])
    ours, theirs = model.decoder.heads[0].predict[0], file_model.decoder.heads[0].predict[0]
    assert torch.equal(ours.bias[[0, 2, 3]], theirs.bias[[4, 1, 5]])
    assert torch.equal(ours.weight[[0, 2, 3]], theirs.weight[[4, 1, 5]])
    assert ours.bias[1] == NEW_BIAS
    assert not ours.weight[1].any()


def test_a_training_state_fills_a_model_with_other_sizes(tmp_path: Path) -> None:
    """Such a file has the shared head under the name of every layer."""
    file_model, model = build(0), build(1, num_groups=1, num_classes=5)
    content = {KEY: file_stamp(), "model": file_model.state_dict(), "optimizer": {}}
    torch.save(content, tmp_path / "last.pt")
    assert "decoder.heads.1.predict.0.bias" in file_model.state_dict()
    load_weights(model, tmp_path / "last.pt")
    assert torch.equal(predict(model), predict(file_model))


def test_an_import_slices_the_groups_of_a_registered_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = replace(EXPERIMENTS["conditional-detr-tiny"], recipe=replace(OWN, channels=32))
    monkeypatch.setitem(EXPERIMENTS, "own", added)
    file_model = build(0)
    path = write(file_model, tmp_path)
    import_weights(path, tmp_path / "one.safetensors", num_groups=1, num_queries=20)
    metadata = read(tmp_path / "one.safetensors")[1]
    recipe = recipe_from_dict(metadata["recipe"])
    assert recipe == replace(OWN, num_groups=1)
    assert metadata["categories"] == [[row, name] for row, name in enumerate(NAMES)]
    again = recipe.build()
    load_weights(again, tmp_path / "one.safetensors")
    assert torch.equal(predict(again), predict(file_model))


def test_one_name_is_needed_for_every_class(tmp_path: Path) -> None:
    path = write(build(0), tmp_path)
    with pytest.raises(UsageError, match="2 class names for a model with 5 classes"):
        load_weights(build(1), path, new_head=True, class_names=["ant", "bee"])


class SwappedSeeds(Seeds):
    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"spot": ParameterAxes((Axis.QUERY, Axis.GROUP))}


@dataclass(frozen=True)
class SwappedDETR(OwnDETR):
    """Queries and groups are declared in the wrong order."""

    def build_queries(self) -> QuerySource:
        return SeedQueries(SwappedSeeds(self.num_groups, self.num_queries, self.channels))


def test_swapped_axes_are_refused(tmp_path: Path) -> None:
    sizes = {"num_classes": 5, "num_groups": 3, "num_queries": 20, **SIZES}
    path = write(build(0), tmp_path)
    with pytest.raises(
        UsageError,
        match=r"the axes of .*spot \(3, 20, 2\) are declared as \[query, group\], and the recipe "
        "of the model has num_groups=3",
    ):
        load_weights(SwappedDETR(**sizes).build(), path)


class UndeclaredHead(SoftmaxHead):
    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {}


@dataclass(frozen=True)
class UndeclaredDETR(OwnDETR):
    """The axes of the head are not declared."""

    def build_head(self) -> PredictionHead:
        return UndeclaredHead(self.channels, self.num_classes)


def test_a_head_must_declare_its_classes(tmp_path: Path) -> None:
    """Otherwise rows of one class could be loaded for another."""
    sizes = {"num_classes": 5, "num_groups": 3, "num_queries": 20, **SIZES}
    model = UndeclaredDETR(**sizes).build()
    path = write(build(0), tmp_path)
    with pytest.raises(WeightsError, match="no module of the model declares which axis"):
        load_weights(model, path)
    loaded = build(1)
    load_weights(loaded, path)
    assert same(loaded, build(0))
