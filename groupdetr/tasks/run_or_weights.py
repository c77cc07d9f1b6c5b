"""Finds the run or the weights file that an argument names.

An argument may also be the name of a model on the Hugging Face hub, or it may be mistyped or in the
wrong place. The error for each kind of mistake says what the argument is, and what to pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from groupdetr.checkpoints import hub, native
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.checkpoints.weights_file import has_safetensors
from groupdetr.console.text import quote
from groupdetr.data.image_files import is_image_name
from groupdetr.data.wrong_inputs import RUN_FIRST
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError, WeightsError
from groupdetr.files.kinds import ANNOTATIONS, IMAGE, VIDEO, recognise, run_around
from groupdetr.files.missing import as_typed, describe_missing
from groupdetr.version import __version__

RUN_OR_WEIGHTS = (
    "pass a folder that `groupdetr train` wrote, a .safetensors file of this library, a published "
    "checkpoint, or a model on the Hugging Face hub (owner/name)"
)
MODEL_FILE = "model.safetensors"  # of a folder that `groupdetr push` wrote
PUSHED_CONFIG = "config.json"  # of the same folder
_KEYS_OF_TRANSFORMERS = {"model_type", "architectures", "id2label"}  # of its config.json
MAX_LISTED = 5  # runs or files that a message lists


def weights_of(source: str | Path) -> Path:
    """Return the best weights of a run, or a weights file of this library, which was named.

    Of a model on the Hugging Face hub, it is the file in the cache of huggingface-hub. Weights of
    another program are converted once, and the converted file is kept in that cache. They may be on
    the hub, in a local folder of transformers, or in a local checkpoint such as a .pth file.

    `UsageError` for anything else. It says what the argument is.
    """
    model = hub.model_named(source)
    if model is not None:
        return _weights_of_model(model)
    path = Path(source)
    if not _exists(path):
        raise _missing_run(source)
    try:
        if path.is_dir():
            if is_pushed(path):
                return path / MODEL_FILE
            if is_folder_of_transformers(path):
                return _weights_of_folder(path)
            return _run_with_weights(path).best
        return _weights_file(path)
    except OSError as error:
        what = f"this cannot be read: {error.strerror or error}"
        raise UsageError(what, str(path), "check the path and its permissions") from error


def is_pushed(folder: Path) -> bool:
    """True if a folder has the files of `groupdetr push`: a model of this library, and no run."""
    file = folder / MODEL_FILE
    is_model = file.is_file() and (folder / "config.json").is_file()
    return is_model and has_safetensors(file) and "recipe" in native.read_metadata(file)


def is_folder_of_transformers(folder: Path) -> bool:
    """True if a folder has a model of transformers: its configuration, and files of weights."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(config, dict) or not config.keys() & _KEYS_OF_TRANSFORMERS:
        return False
    return bool(_weights_in(folder)) and not (folder / "config.yaml").is_file()


def _weights_in(folder: Path) -> list[Path]:
    """Return the files of weights in a folder of transformers, sorted by name."""
    return sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))


def _weights_of_folder(folder: Path) -> Path:
    """Return a weights file of this library with the weights of a local folder of transformers."""
    configurations = [folder / name for name in hub.CONFIGURATIONS if (folder / name).is_file()]
    state = _state_on_disk(folder, [*configurations, *_weights_in(folder)])
    return _converted(str(folder), "local", state)


def _state_on_disk(source: Path, files: Sequence[Path]) -> str:
    """Return a text that changes with the content of a local file or folder.

    ``files`` are those of ``source`` that are read.
    """
    # The size and the time of a file change with its content. To read it would take seconds.
    states = [str(source.resolve())]
    for file in files:
        status = file.stat()
        states.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    digest = hashlib.sha256("\n".join(states).encode(errors="surrogateescape")).hexdigest()
    return digest[:16]


def _weights_of_model(model: hub.HubModel) -> Path:
    """Return a weights file of this library with the weights of a model on the hub."""
    source = hub.download(model)
    if source.is_dir() and is_pushed(source):
        return source / MODEL_FILE
    if source.is_file() and has_safetensors(source) and "recipe" in native.read_metadata(source):
        return source
    # The files of a commit never change.
    commit = hub.commit_of(model, source)
    named = hub.HubModel(model.id, commit, model.file)
    state = commit if model.file is None else f"{commit}-{model.file.replace('/', '--')}"
    return _converted(str(named), model.id, state)


def _converted(source: str, namespace: str, state: str) -> Path:
    """Return the weights of another program as a file of this library, in huggingface-hub's cache.

    ``namespace`` says whose weights they are, and ``state`` changes with them. They are converted
    unless the cache has them.
    """
    # Imported here: the importers of all published checkpoints take time.
    from groupdetr.weights.importing import import_weights

    file = _file_in_cache(namespace, state)
    if not file.is_file():
        import_weights(source, file)
    return file


def _file_in_cache(namespace: str, state: str) -> Path:
    """Return the file of huggingface-hub's cache for converted weights; it may not exist."""
    from huggingface_hub import cached_assets_path, constants

    folder = cached_assets_path(
        "groupdetr",
        namespace=namespace,
        subfolder=f"{state}-{__version__}",
        assets_dir=constants.HF_ASSETS_CACHE,
    )
    return Path(folder) / MODEL_FILE


def default_folder(source: Path) -> Path:
    """Return the folder that a command writes to by default, given the run or the weights file.

    It is the run, or the folder of the weights file. For a model on the Hugging Face hub, it is a
    folder of its name in ``runs``, because its weights are in a cache.
    """
    model = hub.model_named(source)
    if model is not None:
        return Path("runs") / model.folder_name
    return source if source.is_dir() else source.parent


def default_file(source: Path, weights: Path) -> Path:
    """Return the path beside which a command writes a file by default, with another ending.

    ``weights`` are those of ``source``, as `weights_of` returns them. It is their path, unless they
    were converted into the cache. Then it is the path of the checkpoint, or one in its folder.
    """
    if hub.model_named(source) is not None:
        return default_folder(source) / weights.name
    if source.is_dir() and source.resolve() not in weights.resolve().parents:
        return source / weights.name
    return weights if source.is_dir() else source


def _run_with_weights(path: Path) -> RunFolder:
    """Return the folder of a run that has weights. `UsageError` for any other path."""
    expect_run(path)
    run = RunFolder(path)
    if not run.best.is_file():
        what = "this run has no weights yet: its first evaluation writes them"
        raise UsageError(what, str(path), f"continue it: groupdetr train --resume {quote(path)}")
    return run


def expect_run(path: Path) -> None:
    """Raise `UsageError` unless a path is the folder of a run. It says what the path is."""
    if (path / "config.yaml").is_file():
        return
    if not _exists(path):
        raise _missing_run(path)
    what = "this is not the folder of a run"
    owner = run_around(path)
    if owner is not None:
        part = "folder" if path.is_dir() else "file"
        raise UsageError(
            f"{what}, but a {part} inside of one", str(path), f"pass the run: {quote(owner)}"
        )
    if path.is_dir():
        raise UsageError(what, str(path), _hint_for_folder(path))
    kind = recognise(path)
    raise UsageError(
        f"this is {kind.name if kind else 'a file'}, and not the folder of a run",
        str(path),
        "pass the folder that `groupdetr train` wrote (its --out)",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL character
        return False


def _missing_run(source: str | Path) -> UsageError:
    """Return the error for an argument that names no file and no folder."""
    text = str(source)
    what = "there is no such run or weights file"
    # Imported here, because it imports all detectors.
    from groupdetr.registry import list_models

    if text in list_models():
        return UsageError(
            "this is the name of a model, and not a run or a weights file",
            text,
            f"train it first: groupdetr train DATA --model {text}; or convert published weights: "
            "groupdetr import FILE",
        )
    described, remedy = describe_missing(source)
    runs = _names(sorted(Path("runs").glob("*/config.yaml")))
    hint = remedy or RUN_OR_WEIGHTS
    if runs and not remedy:
        hint = f"{hint}; the runs here are {runs}"
    if name := hub.name_with_revision(source):
        hint = f"{hint}; a model on the Hugging Face hub is {name}"
    return UsageError(described or what, as_typed(source), hint)


def _names(configs: Iterable[Path]) -> str:
    """Return the folders of runs, given their config.yaml, separated by commas."""
    folders = [quote(config.parent) for config in configs]
    more = f" and {len(folders) - MAX_LISTED} more" if len(folders) > MAX_LISTED else ""
    return ", ".join(folders[:MAX_LISTED]) + more


def _hint_for_folder(path: Path) -> str:
    """Return what to pass instead of a folder that is not that of a run."""
    runs = _names(sorted(path.glob("*/config.yaml")))
    if runs:
        return f"pass one of the runs in it: {runs}"
    if (path / "config.json").is_file():
        return f"convert it first, if it is a model of transformers: groupdetr import {quote(path)}"
    best = RunFolder(path).best
    if best.is_file():
        return f"restore its config.yaml, or pass its weights: {quote(best)}"
    names = sorted(entry.name for entry in path.iterdir())
    weights = [path / name for name in names if name.endswith(".safetensors")]
    if weights:
        return f"pass the file in it: {quote(weights[0])}"
    is_dataset = any(name.endswith(".json") or name == "annotations" for name in names)
    if is_dataset or any(is_image_name(name) for name in names):
        return _hint_for_dataset(path)
    return "pass a folder that `groupdetr train` wrote (its --out)"


def _hint_for_dataset(path: Path) -> str:
    """Return what to type if a dataset, or a folder of images, is in the place of a run."""
    return (
        f"{RUN_FIRST}, or groupdetr val RUN --data {quote(path)}; to train with a dataset: "
        f"groupdetr train {quote(path)}"
    )


def _weights_file(path: Path) -> Path:
    """Return the path of a weights file of this library, or of one that was converted from another.

    `UsageError` if the file is something else.
    """
    owner = run_around(path)
    remedy = ""
    if owner is not None:
        best = RunFolder(owner).best
        remedy = f"pass the run: {quote(owner)}, or its best weights: {quote(best)}"
        if path.resolve() == best.resolve():
            remedy = native.damage_remedy(path)
    kind = recognise(path)
    if kind is not None:
        if kind in (IMAGE, VIDEO):
            remedy = RUN_FIRST
        if kind == ANNOTATIONS:
            remedy = _hint_for_dataset(path)
        what = f"this is {kind.name}, and not a run or a weights file"
        raise UsageError(what, str(path), remedy or kind.remedy)
    if has_safetensors(path):
        return path
    state = _state_on_disk(path, [path])
    if _file_in_cache("local", state).is_file():
        return _file_in_cache("local", state)
    try:
        checkpoint = open_checkpoint(path)
    except WeightsError as error:
        raise WeightsError(error.what, error.where, remedy or error.remedy) from error
    if checkpoint.is_training_state:
        what = "this is the state of a training, from which it is resumed, and not its best weights"
        raise UsageError(what, str(path), remedy or "pass the folder of the run")
    return _converted(str(path), "local", state)
