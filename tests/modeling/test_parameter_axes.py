"""The axes of groups, queries and classes that the modules of all detectors declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from groupdetr.checkpoints.native import unique_state
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.errors import UsageError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes, declared_axes
from groupdetr.modeling.queries.learned_queries import LearnedPoints
from groupdetr.modeling.queries.query_source import QuerySource

# Small presets with all kinds of queries and heads, and labels of every group.
PRESETS = [
    *("conditional-detr-tiny", "dab-detr-tiny", "dn-detr-tiny", "dab-deformable-detr-tiny"),
    *("dab-deformable-detr-r50-two-stage", "dino-tiny", "group-dino-r50", "mask2former-tiny"),
    *("petr-tiny", "petrv2-tiny", "lw-detr-tiny", "rf-detr-micro", "rf-detr-seg-micro"),
]


def build_outline(recipe: Recipe, **sizes: object) -> DetectionTransformer:
    """Return a model without memory for its parameters."""
    options = {"num_groups": 2, "num_queries": 7, "num_classes": 5, "pretrained_backbone": False}
    with torch.device("meta"):
        return recipe.with_options(**{**options, **sizes}).build()


@pytest.mark.parametrize("name", PRESETS)
def test_exactly_the_axes_whose_sizes_change_are_declared(name: str) -> None:
    recipe = EXPERIMENTS[name].recipe
    model = build_outline(recipe)
    changes = [(Axis.GROUP, "num_groups", 3), (Axis.QUERY, "num_queries", 9)]
    for axis, field, size in [*changes, (Axis.CLASS, "num_classes", 6)]:
        other_state = unique_state(build_outline(recipe, **{field: size}))
        changed = {}
        for name, value in unique_state(model).items():
            for i, sizes in enumerate(zip(value.shape, other_state[name].shape)):
                if len(set(sizes)) > 1:
                    changed[name] = i
        declared = {name: axes.index(axis) for name, axes in declared_axes(model).items()}
        assert changed == {name: i for name, i in declared.items() if i is not None}, field


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-tiny")])
def test_classes_are_initialised_as_in_a_new_model(name: str) -> None:
    """The declared function draws weights and biases from the same range as the constructor."""
    torch.manual_seed(0)
    model = EXPERIMENTS[name].recipe.with_options(num_classes=500, num_groups=2).build()
    parameters = dict(model.named_parameters())
    names = []
    for parameter_name, axes in declared_axes(model).items():
        if axes.init_classes is None:
            continue
        names.append(parameter_name)
        ours = parameters[parameter_name].detach()
        drawn = torch.full_like(ours, torch.nan)
        axes.init_classes(drawn)
        torch.testing.assert_close(drawn.std(), ours.std(), rtol=0.1, atol=1e-6)
        torch.testing.assert_close(drawn.amax(), ours.amax(), rtol=0.2, atol=1e-6)
        torch.testing.assert_close(drawn.mean(), ours.mean(), rtol=1e-4, atol=0.02)
    assert len(names) >= 2


def test_a_shared_module_is_listed_under_its_first_name() -> None:
    model = TinyConditionalDETR(decoder_layers=3).build()
    assert model.decoder.heads[0] is model.decoder.heads[2]
    names = [name for name in declared_axes(model) if "classify" in name]
    assert names == ["decoder.heads.0.classify.weight", "decoder.heads.0.classify.bias"]


def test_an_outer_declaration_replaces_an_inner_one() -> None:
    class Inner(nn.Linear):
        def parameter_axes(self) -> dict[str, ParameterAxes]:
            return {"weight": ParameterAxes((Axis.GROUP,)), "bias": ParameterAxes((Axis.GROUP,))}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Inner(5, 2)

        def parameter_axes(self) -> dict[str, ParameterAxes]:
            return {"layer.weight": ParameterAxes((Axis.GROUP, Axis.QUERY))}

    assert declared_axes(nn.Sequential(Outer())) == {
        "0.layer.weight": ParameterAxes((Axis.GROUP, Axis.QUERY)),
        "0.layer.bias": ParameterAxes((Axis.GROUP,)),
    }


class DeclaredPoints(LearnedPoints):
    """Queries with a second table, and any declaration."""

    def __init__(self, recipe: Recipe, declared: Mapping[str, ParameterAxes]) -> None:
        super().__init__(recipe.num_groups, recipe.num_queries, recipe.channels, 0)
        self.declared = declared
        self.table = nn.Parameter(torch.zeros(recipe.num_queries, recipe.num_groups))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {**super().parameter_axes(), **self.declared}


@dataclass(frozen=True)
class DeclaredRecipe(TinyConditionalDETR):
    """A detector with `DeclaredPoints`."""

    declared: tuple[tuple[str, tuple[Axis, ...]], ...] = ()

    def build_queries(self) -> QuerySource:
        declared = {name: ParameterAxes(axes) for name, axes in self.declared}
        return DeclaredPoints(self, declared)


@pytest.mark.parametrize(
    ("name", "axes", "message"),
    [
        ("tabel", (Axis.GROUP,), "declares axes of 'tabel', and has no parameter of this name"),
        (
            "table",
            (Axis.QUERY, Axis.GROUP, Axis.OTHER),
            r"the axes \[query, group, other\] are declared for a parameter of the shape \(50, 3\)",
        ),
        (
            "table",
            (Axis.GROUP, Axis.QUERY),
            r"queries\.table \(50, 3\) is declared as \[group, query\], and queries\.embedding "
            r"\(3, 50, 64\) as \[group, query\]",
        ),
    ],
    ids=["name", "number of axes", "order"],
)
def test_a_declaration_that_does_not_fit_is_refused_when_the_model_is_built(
    name: str, axes: tuple[Axis, ...], message: str
) -> None:
    DeclaredRecipe(num_groups=3, declared=(("table", (Axis.QUERY, Axis.GROUP)),)).build()
    with pytest.raises(UsageError, match=message):
        DeclaredRecipe(num_groups=3, declared=((name, axes),)).build()


def test_an_axis_of_classes_needs_an_initialisation() -> None:
    with pytest.raises(ValueError, match="a parameter has init_classes if one of its axes"):
        ParameterAxes((Axis.CLASS,))
    with pytest.raises(ValueError, match="and only then"):
        ParameterAxes((Axis.GROUP,), nn.init.zeros_)
    with pytest.raises(ValueError, match="two axes are declared as group"):
        ParameterAxes((Axis.GROUP, Axis.GROUP))
