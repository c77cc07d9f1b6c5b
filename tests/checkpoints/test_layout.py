"""The table of a layout transposes matrices and stacks the tensors of groups, and undoes both."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import (
    Layout,
    Names,
    OfGroup,
    OfGroups,
    Transposed,
    rename,
    with_prefixes,
)
from groupdetr.errors import WeightsError

# Every kind of entry: a list of all groups, one that starts at group 1, a matrix of other rows and
# columns, and a matrix that is split after it was transposed.
NAMES: Names = {
    "linear.*": Transposed("linear.*"),
    "attention.in_proj_*": Transposed(("query.*", "key.*")),
    "output.#.*": OfGroups(Transposed("heads.project.*")),
    "box.#.layers.#.weight": OfGroups("heads.box.#.weight"),
    "table.weight": OfGroup(0, "queries"),
    "more_tables.#.weight": OfGroups("queries", first=1),
}
SHAPES = {
    "linear.weight": (2, 3),
    "linear.bias": (3,),
    "attention.in_proj_weight": (3, 4),
    "attention.in_proj_bias": (4,),
    **{f"output.{group}.weight": (2, 5) for group in range(3)},
    **{f"box.{group}.layers.{layer}.weight": (2, 2) for group in range(3) for layer in range(2)},
    "table.weight": (6, 2),
    "more_tables.0.weight": (6, 2),
    "more_tables.1.weight": (6, 2),
}


def layout(names: Names) -> Layout:
    return Layout("theirs", lambda _: "", ("linear.weight",), names, lambda _: {}, lambda _: [])


LAYOUT = layout(NAMES)


@pytest.fixture
def theirs() -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return LAYOUT.convert(Checkpoint(dict(state), {}, "a file")).state


def test_every_kind_of_entry_is_converted(theirs: dict[str, Tensor]) -> None:
    ours = convert(theirs)
    # Matrices are transposed, and vectors are not.
    assert torch.equal(ours["linear.weight"], theirs["linear.weight"].T)
    assert torch.equal(ours["linear.bias"], theirs["linear.bias"])
    # A matrix is transposed before it is split.
    rows = theirs["attention.in_proj_weight"].T
    assert torch.equal(ours["query.weight"], rows[:2])
    assert torch.equal(ours["key.weight"], rows[2:])
    # A list without group 0 is behind the tensor of group 0.
    names = ("table.weight", "more_tables.0.weight", "more_tables.1.weight")
    assert torch.equal(ours["queries"], torch.stack([theirs[name] for name in names]))
    # Other numbers of a name stay in it.
    second_layers = [theirs[f"box.{group}.layers.1.weight"] for group in range(3)]
    assert torch.equal(ours["heads.box.1.weight"], torch.stack(second_layers))


def test_the_tensors_of_groups_are_stacked_by_their_numbers(theirs: dict[str, Tensor]) -> None:
    # Ten groups and more: as texts, "10" comes before "2".
    theirs |= {f"output.{group}.weight": torch.full((2, 5), float(group)) for group in range(12)}
    for group in range(3, 12):
        theirs |= {f"box.{group}.layers.{layer}.weight": torch.zeros(2, 2) for layer in range(2)}
        theirs |= {f"more_tables.{group - 1}.weight": torch.zeros(6, 2)}
    ours = convert(theirs)
    assert ours["heads.project.weight"].shape == (12, 5, 2)
    assert ours["heads.project.weight"][:, 0, 0].tolist() == list(range(12))


def test_what_is_converted_is_written_again(theirs: dict[str, Tensor]) -> None:
    again = LAYOUT.revert(convert(theirs))
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_one_group_is_written_under_its_own_names(theirs: dict[str, Tensor]) -> None:
    ours = convert(theirs)
    with_groups = {name for name in ours if LAYOUT.has_axis_of_groups(name)}
    assert with_groups == {
        "heads.project.weight",
        "heads.box.0.weight",
        "heads.box.1.weight",
        "queries",
    }
    one_group = {name: ours[name][1:2] if name in with_groups else ours[name] for name in ours}
    again = LAYOUT.revert(one_group)
    assert torch.equal(again["table.weight"], theirs["more_tables.0.weight"])
    assert torch.equal(again["output.0.weight"], theirs["output.1.weight"])
    assert not any(name.startswith(("more_tables", "output.1")) for name in again)


@pytest.mark.parametrize("missing", ["output.1.weight", "table.weight", "more_tables.1.weight"])
def test_a_group_that_lacks_a_tensor_is_refused_by_its_name(
    missing: str, theirs: dict[str, Tensor]
) -> None:
    del theirs[missing]
    with pytest.raises(WeightsError, match="3 groups, but no") as refused:
        convert(theirs)
    assert refused.value.what.endswith(f" {missing}")


def test_groups_of_other_shapes_are_refused_by_their_names(theirs: dict[str, Tensor]) -> None:
    theirs["more_tables.1.weight"] = torch.zeros(7, 2)
    with pytest.raises(WeightsError, match=r"more_tables\.1\.weight \(7, 2\) and not \(6, 2\)"):
        convert(theirs)


@pytest.mark.parametrize("number", ["1024", "9" * 5000])
def test_a_number_that_is_not_one_of_a_group_is_refused(
    number: str, theirs: dict[str, Tensor]
) -> None:
    theirs[f"output.{number}.weight"] = torch.zeros(2, 5)
    with pytest.raises(WeightsError, match=f"fewer groups .*: output.{number[:100]}"):
        convert(theirs)


def test_two_tensors_of_one_group_must_be_equal(theirs: dict[str, Tensor]) -> None:
    theirs["output.02.weight"] = theirs["output.2.weight"] + 1
    with pytest.raises(WeightsError, match=r"which differ: output\.02\.weight"):
        convert(theirs)


def test_a_tensor_that_is_no_matrix_is_not_transposed(theirs: dict[str, Tensor]) -> None:
    theirs["linear.weight"] = torch.zeros(2, 3, 1)
    with pytest.raises(WeightsError, match="other shapes"):
        convert(theirs)


def test_a_prefix_is_put_before_the_names_of_every_kind_of_entry() -> None:
    names = with_prefixes(NAMES, "model.", "detector.")
    for name in SHAPES:
        renamed, prefixed = rename(name, NAMES), rename(f"model.{name}", names)
        assert renamed is not None
        assert prefixed is not None
        assert prefixed.names == tuple(f"detector.{our_name}" for our_name in renamed.names)
        assert (prefixed.group, prefixed.is_transposed) == (renamed.group, renamed.is_transposed)
