"""The models by name: list them, create them, register new ones, and load plugins that do.

The names are the presets and the rows of the paper's tables (`groupdetr.experiments`), and what
`register_model` adds.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

from groupdetr.checkpoints.metadata import check_recipe_fields
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import GroupDETRError, UsageError, WeightsError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.experiments.experiment import Experiment
from groupdetr.experiments.presets import UNAVAILABLE
from groupdetr.files.preset_table import plugins, unknown_model
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.settings import Settings
from groupdetr.structures.json_object import JsonObject

CLASS = "class"  # the key of the recipe's class in a saved recipe

_loaded_plugins: list[str] = []


# Models


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of all models that match ``pattern``, in which ``*`` stands for any text.

    >>> groupdetr.list_models("dino*tiny")
    ['dino-tiny', 'dino-vit-tiny']
    """
    return [name for name in EXPERIMENTS if fnmatch(name, pattern)]


def create_model(name: str, **options: object) -> DetectionTransformer:
    """Return the detector called ``name``, with random weights.

    ``options`` are fields of its recipe. The number of groups is that with which `groupdetr train`
    trains it: 11 for models of full size. ``num_groups=1`` is the detector without groups.
    `UsageError` for an unknown name, `TypeError` for an unknown option.

    >>> model = groupdetr.create_model("dab-detr-r50", num_classes=12, num_groups=11)
    """
    return experiment(name).recipe.with_options(**options).build()


def create_criterion(model: DetectionTransformer) -> SetCriterion:
    """Return the criterion with the terms and the matching of the model's recipe.

    `UsageError` if ``model`` is no detector of this library.

    >>> losses = groupdetr.create_criterion(model)(model(images, targets), targets)
    """
    if not isinstance(model, DetectionTransformer):
        raise UsageError(
            f"a criterion is created for a detector, not for {type(model).__name__}",
            remedy="pass what create_model returns; for a detector of your own, use SetCriterion",
        )
    return model.recipe.criterion()


def experiment(name: str) -> Experiment:
    """Return the experiment or preset called ``name``.

    `UsageError` with the most similar names if there is none.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    raise unknown_model(name, EXPERIMENTS, UNAVAILABLE, _loaded_plugins)


def register_model(
    name: str,
    recipe: Recipe,
    settings: Settings | None = None,
    *,
    task: str = "detection",
    about: str = "",
) -> None:
    """Add a model, so that all commands and functions find it by its ``name``.

    ``settings`` are those that it is trained with by default; None: DETR's. ``task`` is a name in
    `groupdetr.tasks.registry`. ``about`` is its line in `groupdetr presets`. `ValueError` if the
    name is taken by another model.

    >>> groupdetr.register_model("my-detr", MyDETR(num_groups=11), Settings(epochs=24))
    """
    added = Experiment(replace(recipe, preset=name), settings or Settings(), about, task=task)
    # A module that is imported twice registers the same model twice, which does no harm.
    if name in EXPERIMENTS and not _is_same(EXPERIMENTS[name], added):
        raise ValueError(f"there is a model {name!r} already: choose another name")
    EXPERIMENTS[name] = added


def _is_same(a: Experiment, b: Experiment) -> bool:
    """Return whether two experiments have the same values and recipe classes of the same name."""
    return class_path(type(a.recipe)) == class_path(type(b.recipe)) and (asdict(a) == asdict(b))


# Saved recipes


def class_path(recipe_class: type[Recipe]) -> str:
    """Return the import path of a class, such as ``groupdetr.detectors.dino:DINO``."""
    return f"{recipe_class.__module__}:{recipe_class.__qualname__}"


def recipe_to_dict(recipe: Recipe) -> JsonObject:
    """Return the import path of a recipe's class and all of its fields, for a weights file."""
    return {CLASS: class_path(type(recipe)), **asdict(recipe)}


def recipe_from_dict(saved: Mapping[str, object], where: str = "") -> Recipe:
    """Return the recipe that `recipe_to_dict` has saved in the file ``where``.

    The class is one of those of the models that are registered. Nothing is imported, opened or
    downloaded that the file names: the backbone has random weights until those of the file are
    loaded. `WeightsError` if the class or a field of it is unknown, or if a value cannot be used.
    """
    options = dict(saved)
    check_recipe_fields(options, where)
    path = str(options.pop(CLASS, ""))
    if not path:
        raise WeightsError(
            "the recipe in this file has no class: it was written by groupdetr before 0.1.0",
            where,
            "train again with groupdetr train, or convert the published weights again with "
            "groupdetr import",
        )
    recipe_class = _known_classes().get(path)
    if recipe_class is None:
        module = path.partition(":")[0]
        raise WeightsError(
            f"this file belongs to a model of the class {path}, which is not known",
            where,
            f"name the plugin that registers it: --plugin {module} (Python: import {module} first)",
        )
    known = {field.name for field in fields(recipe_class)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise WeightsError(
            f"the recipe in this file has fields that {path} does not have: {', '.join(unknown)}",
            where,
            "use the version of the class, or of groupdetr, that the file was written with",
        )
    if "pretrained_backbone" in known:
        options["pretrained_backbone"] = False
    try:
        return recipe_class().with_options(**options)
    except (ArithmeticError, LookupError, TypeError, UsageError, ValueError) as error:
        raise WeightsError(
            f"the recipe in this file is not valid: {getattr(error, 'what', error)}",
            where,
            "name the plugins that the model uses: --plugin MODULE; or get the file again",
        ) from error


def _known_classes() -> dict[str, type[Recipe]]:
    """Return the classes of the recipes of all models by their import paths."""
    classes = [type(known.recipe) for known in EXPERIMENTS.values()]
    return {class_path(recipe_class): recipe_class for recipe_class in classes}


# Plugins


def load_plugin(name: str) -> None:
    """Run a plugin: a module of Python that registers models, backbones or data formats.

    ``name`` is an entry point of the group `groupdetr.models`, a module, or the path of a .py file.
    Modules are also searched for in the current folder. A plugin runs any code that it contains,
    so it is only loaded if the user names it; no checkpoint can load one.

    `UsageError` if there is no such plugin, and if it raises an exception, which is its cause.

    >>> groupdetr.load_plugin("my_detectors.py")  # it calls groupdetr.register_model
    """
    if name in _loaded_plugins:
        return
    for point in plugins():
        if point.name == name:
            with _errors_of_plugin(name):
                _call_if_possible(point.load())
            _loaded_plugins.append(name)
            return
    if name.endswith(".py"):
        _import_file(Path(name))
    else:
        _import_module(name)
    _loaded_plugins.append(name)


def load_object(path: str) -> object:
    """Return what ``path`` names: ``module:name`` or ``file.py:name``. The module is run.

    `UsageError` if there is no such module or name.
    """
    module_name, separator, name = path.rpartition(":")
    if not separator:
        raise UsageError(
            f"{path!r} does not say what to use of a module",
            remedy="write MODULE:NAME, or FILE.py:NAME",
        )
    if module_name.endswith(".py"):
        _import_file(Path(module_name))
        module_name = Path(module_name).stem
    else:
        _import_module(module_name)
    module = sys.modules[module_name]
    if not hasattr(module, name):
        # Its own functions and classes, without what it imports
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        similar = get_close_matches(name, known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"it has {', '.join(known)}"
        raise UsageError(f"{module_name} has no {name!r}", path, hint)
    return getattr(module, name)


def loaded_plugins() -> tuple[str, ...]:
    """Return the names of the plugins that were loaded, for other processes and for config.yaml."""
    return tuple(_loaded_plugins)


def _call_if_possible(loaded: object) -> None:
    """Call what an entry point names if it is a function. A module has run by being imported."""
    if isinstance(loaded, Callable):  # type: ignore[arg-type]
        loaded()  # type: ignore[operator]


@contextmanager
def _errors_of_plugin(name: str) -> Iterator[None]:
    """Turn an exception of the code of a plugin into a `UsageError` with its file and line."""
    try:
        yield
    except GroupDETRError:
        raise
    except (Exception, SystemExit) as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}, line {line.lineno}"
        if isinstance(error, SyntaxError) and error.filename is not None:
            where = f"{error.filename}, line {error.lineno}"
        raise UsageError(
            f"the plugin {name!r} fails: {type(error).__name__}: {error}",
            where,
            "correct the plugin",
        ) from error


def _import_file(path: Path) -> None:
    """Import a .py file under the name of its stem."""
    if not path.is_file():
        raise UsageError("there is no such plugin", str(path), "pass the path of a .py file")
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        if Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
            return
        raise UsageError(
            f"a plugin cannot be called {path.stem!r}, because a module of this name is loaded",
            str(path),
            "rename the file",
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Recipes are saved with the name of their module, and dataclasses look it up.
    sys.modules[path.stem] = module
    try:
        with _errors_of_plugin(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


def _import_module(name: str) -> None:
    """Import a module from the environment or from the current folder."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with _errors_of_plugin(name):
            import_module(name)
    except UsageError as failed:
        error = failed.__cause__
        # A module that the plugin itself fails to import is an error of the plugin.
        is_missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(
            f"{error.name}."
        )
        # Names that begin with a dot have no meaning here.
        if not is_missing and not name.startswith("."):
            raise
        installed = ", ".join(sorted(point.name for point in plugins())) or "none"
        raise UsageError(
            f"there is no plugin {name!r}",
            remedy="pass a module that can be imported, the path of a .py file, or the name of an "
            f"installed plugin ({installed})",
        ) from error
