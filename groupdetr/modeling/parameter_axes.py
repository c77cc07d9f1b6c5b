"""What the axes of a parameter stand for: groups, queries of a group, or classes.

The number of groups K, of queries N and of classes may differ between the weights in a file and the
model that they are loaded into. Every module that has parameters with such an axis declares them in
a method ``parameter_axes``. `groupdetr.weights` reads the declarations, so it loads any module,
whatever its parameters are called and wherever it is in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from groupdetr.errors import UsageError
from groupdetr.structures.tensor_dataclass import require


class Axis(Enum):
    """What an axis of a parameter stands for."""

    GROUP = "group"  # the K groups
    QUERY = "query"  # the N queries of a group
    CLASS = "class"  # the classes
    CLASS_OR_NO_OBJECT = "class or no object"  # the classes, and "no object" as the last
    OTHER = "other"  # anything whose size is the same in the file and in the model


CLASS_AXES = (Axis.CLASS, Axis.CLASS_OR_NO_OBJECT)


@dataclass(frozen=True)
class ParameterAxes:
    """What the first axes of one parameter stand for. Those after them are `Axis.OTHER`.

    A parameter with an axis of classes also has ``init_classes``, a function that initialises such
    a parameter in place. It is called with a tensor that has the shape of the parameter, but
    perhaps another number of groups.

    >>> ParameterAxes((Axis.GROUP, Axis.QUERY))  # a table of queries [K,N,C]
    >>> ParameterAxes((Axis.CLASS,), init_prior_bias)  # the bias of a class head [classes]
    """

    axes: tuple[Axis, ...]
    init_classes: Callable[[Tensor], object] | None = None

    def __post_init__(self) -> None:
        for axis in (Axis.GROUP, Axis.QUERY):
            require(self.axes.count(axis) <= 1, f"two axes are declared as {axis.value}")
        class_axes = [axis for axis in self.axes if axis in CLASS_AXES]
        require(len(class_axes) <= 1, "two axes are declared as classes")
        require(
            bool(class_axes) == (self.init_classes is not None),
            "a parameter has init_classes if one of its axes are the classes, and only then: it "
            "initialises the classes that a file with weights does not have",
        )

    def index(self, axis: Axis) -> int | None:
        """Return which axis of the parameter stands for ``axis``, None if there is none.

        For `Axis.CLASS`, this may also be an axis of `Axis.CLASS_OR_NO_OBJECT`.
        """
        sought = CLASS_AXES if axis is Axis.CLASS else (axis,)
        for i, declared in enumerate(self.axes):
            if declared in sought:
                return i
        return None

    def count(self, axis: Axis, tensor: Tensor) -> int | None:
        """Return the number of groups, queries or classes of a tensor with these axes.

        "No object" is not counted. It is None if the tensor has no such axis.
        """
        index = self.index(axis)
        if index is None or index >= tensor.ndim:
            return None
        has_no_object = axis is Axis.CLASS and self.axes[index] is Axis.CLASS_OR_NO_OBJECT
        return tensor.shape[index] - has_no_object

    def __str__(self) -> str:
        return f"[{', '.join(axis.value for axis in self.axes)}]"


@runtime_checkable
class HasParameterAxes(Protocol):
    """A module that declares the axes of its parameters."""

    def parameter_axes(self) -> Mapping[str, ParameterAxes]:
        """Return the axes of every parameter that has an axis of groups, queries or classes.

        The names are relative to the module, such as ``embedding`` or ``classify.weight``. If a
        module declares a parameter of a module inside of it, this replaces the inner declaration.
        """


def declared_axes(model: nn.Module) -> dict[str, ParameterAxes]:
    """Return what the modules of a model declare, under the full names of the parameters.

    A parameter that modules share is listed under its first name only. Buffers may be declared,
    too. `UsageError` if a declaration does not fit the parameters.
    """
    first_names = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        first_names[id(tensor)] = name

    declared: dict[str, ParameterAxes] = {}
    tensors: dict[str, Tensor] = {}
    # A module comes before those inside of it, so the first declaration counts.
    for module in model.modules():
        if not isinstance(module, HasParameterAxes):
            continue
        for name, axes in module.parameter_axes().items():
            tensor = _find_tensor(module, name)
            _expect_axes(axes, tensor, f"{type(module).__name__}.parameter_axes(), {name}")
            first_name = first_names[id(tensor)]
            declared.setdefault(first_name, axes)
            tensors[first_name] = tensor

    for axis in (Axis.GROUP, Axis.CLASS):
        _expect_equal_counts(axis, declared, tensors)
    return declared


def count_by_name(
    axis: Axis, declared: Mapping[str, ParameterAxes], tensors: Mapping[str, Tensor]
) -> dict[str, int]:
    """Return the number of groups, queries or classes of every tensor that has such an axis.

    ``declared`` is what `declared_axes` returns. Tensors that it does not list are left out.
    """
    counts = {}
    for name, axes in declared.items():
        if name in tensors:
            count = axes.count(axis, tensors[name])
            if count is not None:
                counts[name] = count
    return counts


def _find_tensor(module: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of a module that has this name."""
    for find in (module.get_parameter, module.get_buffer):
        try:
            return find(name)
        except AttributeError:
            continue
    raise UsageError(
        f"{type(module).__name__} declares axes of {name!r}, and has no parameter of this name",
        f"{type(module).__name__}.parameter_axes()",
        "use the names of the module's state_dict()",
    )


def _expect_axes(axes: ParameterAxes, tensor: Tensor, where: str) -> None:
    """Raise `UsageError` if more axes are declared than the tensor has."""
    if len(axes.axes) > tensor.ndim:
        raise UsageError(
            f"the axes {axes} are declared for a parameter of the shape {tuple(tensor.shape)}",
            where,
            "declare as many axes as the parameter has, or fewer",
        )


def _expect_equal_counts(
    axis: Axis, declared: Mapping[str, ParameterAxes], tensors: Mapping[str, Tensor]
) -> None:
    """Raise `UsageError` unless all parameters have the same number of groups, or of classes."""
    counts = count_by_name(axis, declared, tensors)
    for name, count in counts.items():
        first_name = next(iter(counts))
        if count != counts[first_name]:
            raise UsageError(
                f"{name} {tuple(tensors[name].shape)} is declared as {declared[name]}, and "
                f"{first_name} {tuple(tensors[first_name].shape)} as {declared[first_name]}: "
                f"the size of the axis {axis.value!r} must be the same",
                "parameter_axes() of the modules that have these parameters",
                "correct the order of the declared axes, or the size of the parameters",
            )
