"""`groupdetr push`: publish a detector on the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from groupdetr.checkpoints import hub_upload, native
from groupdetr.console.output import create_console
from groupdetr.console.text import quote
from groupdetr.engine.run_folder import RunFolder, write_json, write_text
from groupdetr.errors import UsageError
from groupdetr.files.replacing import expect_folder, expect_replaceable, same_file
from groupdetr.files.writing import explained
from groupdetr.report.model_card import Training, model_card
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import recorded_threshold
from groupdetr.tasks.output_files import has_json_keys
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.run_or_weights import MODEL_FILE, PUSHED_CONFIG
from groupdetr.tasks.trained_detector import recipe_and_experiment, weights_and_metadata
from groupdetr.version import __version__

CONFIG_FILE = PUSHED_CONFIG
CARD_FILE = "README.md"
FILES = (MODEL_FILE, CONFIG_FILE, CARD_FILE)


@dataclass(frozen=True)
class PushResult:
    """Where the files of a detector are."""

    model: str  # owner/name on the hub
    folder: Path | None  # the folder of --out, if the files were written there
    url: str | None  # of the commit on the hub, if they were uploaded
    has_license: bool

    def to_json(self) -> JsonObject:
        """Return the model, its files, and where they are."""
        return {
            "model": self.model,
            "folder": str(self.folder) if self.folder is not None else None,
            "url": self.url,
            "files": list(FILES),
        }

    def show(self) -> None:
        """Print where the files are, and what to type next."""
        console = create_console()
        if not self.has_license:
            console.print("the model card states no license; --license NAME adds one")
        if self.folder is not None:
            console.print(
                f"{', '.join(FILES)} are in {self.folder}; to upload them: "
                f"hf upload {self.model} {quote(self.folder)}"
            )
        if self.url is not None:
            console.print(f"uploaded: {self.url}")
            console.print(f"to use it: groupdetr predict {self.model} photo.jpg")


def push(
    run: str | Path,
    model: str,
    *,
    private: bool = False,
    out: str | Path | None = None,
    license: str | None = None,
) -> PushResult:
    """Publish the best weights of a run on the Hugging Face hub, and return where they are.

    ``model`` is the name ``owner/name`` there; it is created if it does not exist. The keywords are
    the options of `groupdetr push`: ``private`` lets only its owner see it, ``out`` is a folder
    that the files are written to instead of being uploaded, and ``license`` is stated in the model
    card. The login is that of huggingface-hub (``hf auth login``, or HF_TOKEN).

    The files are model.safetensors (the weights), config.json (the recipe, the classes, the image
    size and the score threshold of the best F1) and README.md (the model card). They have no paths
    of this machine.

    `UsageError` if there is no such run, if nobody is logged in, or if the hub cannot be reached.

    >>> groupdetr.push("runs/mine", "me/mine", out="to-publish").folder
    """
    named = hub_upload.model_to_push(model)
    if out is not None:
        folder = Path(out)
        expect_folder(folder)
        is_own = has_json_keys(folder / CONFIG_FILE, ("library_name", "recipe"))
        # The detector itself may be such a folder, or the weights in it.
        weights_folder = Path(run) if Path(run).is_dir() else Path(run).parent
        is_own = is_own and not same_file(weights_folder, folder)
        files = [folder / name for name in FILES]
        expect_replaceable(files, lambda _: is_own, "choose another folder with --out")
        write_files(Path(run), named.id, folder, license)
        return PushResult(named.id, folder, None, license is not None)
    hub_upload.expect_login()
    with TemporaryDirectory(prefix="groupdetr-push-") as temporary:
        folder = Path(temporary)
        write_files(Path(run), named.id, folder, license)
        url = hub_upload.upload(folder, FILES, named, private)
    return PushResult(named.id, None, url, license is not None)


def push_command(
    *, run: Path, model: str, private: bool, out: Path | None, license: str | None
) -> PushResult:
    """Publish a detector. The arguments are the options of `groupdetr push`."""
    return push(run, model, private=private, out=out, license=license)


def write_files(run: Path, model: str, folder: Path, license: str | None) -> None:
    """Write model.safetensors, config.json and README.md to a folder, which is created."""
    file, metadata = weights_and_metadata(run)
    recipe, experiment = recipe_and_experiment(metadata, file)
    native.read(file)  # `WeightsError` if it is damaged
    task = task_class(experiment.task)
    categories = metadata.get("categories") or [
        [row, f"class {row}"] for row in range(recipe.num_classes)
    ]
    imgsz = metadata.get("imgsz") or experiment.settings.imgsz
    fields = dict(metadata["recipe"])
    if isinstance(fields.get("pretrained_backbone"), str):
        raise UsageError(
            "the metadata of this file name a file of the machine that it was written on",
            str(file),
            f"write it again: groupdetr import {quote(file)} --out NEW.safetensors",
        )
    training = None
    if run.is_dir() and (run / "config.yaml").is_file():
        training = _training(RunFolder(run))
    card = model_card(
        model, recipe, [name for _, name in categories], imgsz, task.kind, training, license
    )
    config: JsonObject = {
        "library_name": "groupdetr",
        "groupdetr_version": __version__,
        "task": task.kind,
        "recipe": fields,
        "categories": categories,
        "imgsz": imgsz,
    }
    threshold = recorded_threshold(run, file)
    if threshold is not None:
        config["score_threshold"] = threshold  # the default of `predict`
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, config)  # first: it says whose the folder is
    with explained(folder / MODEL_FILE):
        shutil.copyfile(file, folder / MODEL_FILE)
    write_text(folder / CARD_FILE, card)


def _training(run: RunFolder) -> Training:
    """Return the training of a run, with the metrics of its best weights."""
    return Training.from_run(run, _content(run.best_metrics), _content(run.data))


def _content(file: Path) -> JsonObject:
    """Return the object in a JSON file of a run, {} if it is missing. `UsageError` if damaged."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        what = f"this file of the run cannot be read: {error}"
        raise UsageError(what, str(file), "restore it, or pass the weights file alone") from error
    return content
