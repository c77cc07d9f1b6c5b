"""Experiment trackers: TensorBoard, Weights & Biases, MLflow and Trackio, as Accelerate wraps them.

A `RunTracker` adds to a tracker of Accelerate what that leaves to its user: to continue the same
run when a training is resumed, images, files, and where the data are kept. `engine.tracking`
decides when something is sent.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from PIL import Image

from groupdetr.console.text import file_name, quote
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.settings import TRACKER_NAMES, TrackerName
from groupdetr.structures.json_object import JsonObject

TrackerT = TypeVar("TrackerT", bound=GeneralTracker)
# A record of the log: the step, and True for an evaluation, which follows the record of its step.
Position = tuple[int, bool]
Value = bool | int | float | str | None  # of the configuration
Outcome = Literal["finished", "interrupted", "failed"]

PROJECT = "groupdetr"  # of the runs in trackers that have projects
MAX_VALUE_LENGTH = 500  # characters of a value of the configuration
# MLflow takes only these characters in the name of a metric.
_NOT_IN_METRIC_NAME = re.compile(r"[^\w\-. :/]")


class RunTracker(ABC):
    """The run of one training in one tracker.

    ``state`` is what the tracker needs to continue the same run when the training is resumed, as
    JSON. It is {} for a new run.
    """

    name: ClassVar[TrackerName]
    package: ClassVar[str]  # that is imported
    install: ClassVar[str]  # what the user types if the package is missing
    start_remedy: ClassVar[str] = "correct it"  # what the user does if it cannot be started

    def __init__(self, run: RunFolder, state: JsonObject) -> None:
        self.run = run
        self.state = state

    @property
    def is_new(self) -> bool:
        """True if no earlier part of the training has used this tracker."""
        return not self.state

    @property
    def last(self) -> Position | None:
        """The last record that the tracker has, None if it has none."""
        last = self.state.get("last")
        return None if last is None else (int(last[0]), bool(last[1]))

    @classmethod
    def expect_usable(cls) -> None:
        """Raise `UsageError` if the tracker cannot be used, before anything else is done."""
        if find_spec(cls.package) is None:
            raise UsageError(
                f"--log-with {cls.name} needs the package {cls.package}, which is not installed",
                remedy=f"{cls.install}, or leave out {cls.name}",
            )

    @abstractmethod
    def start(self, configuration: Mapping[str, Value], redo_from: int) -> None:
        """Begin the run, or continue it.

        The ``configuration`` is sent to a new run. Records of the step ``redo_from`` and of later
        ones are sent again. `last` is the last record that the tracker keeps afterwards.
        """

    @abstractmethod
    def how_to_view(self) -> str:
        """Return the command or the address that shows a run that was started."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars by name."""

    @abstractmethod
    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        """Log images by name."""

    @abstractmethod
    def log_result(self, report: Path, weights: Path, step: int) -> None:
        """Log the page of the run and the weights of the best evaluation.

        A tracker that keeps its data on this machine gets the path of the weights, and one that
        sends them to a server the file.
        """

    @abstractmethod
    def finish(self, outcome: Outcome) -> None:
        """Send what is waiting, and end the run."""


class TensorBoardRun(RunTracker):
    """Event files in the folder ``tensorboard`` of the run."""

    name = "tensorboard"
    package = "tensorboard"
    install = "pip install 'groupdetr[tensorboard]'"

    tracker: TensorBoardTracker

    def start(self, configuration: Mapping[str, Value], redo_from: int) -> None:
        is_new = self.is_new
        # TensorBoard hides what other files of this folder have of this step and of later ones.
        purge_step = 0 if is_new else redo_from
        self.tracker = _started(
            TensorBoardTracker(self.run.tensorboard.name, str(self.run.path), purge_step=purge_step)
        )
        if is_new:
            # Accelerate's method would write a run of its own, which TensorBoard would list, too.
            from torch.utils.tensorboard.summary import hparams

            shown = {name: value for name, value in configuration.items() if value is not None}
            for summary in hparams(shown, {}):
                self.tracker.tracker.file_writer.add_summary(summary)
        elif self.last is not None:
            self.state["last"] = list(min(self.last, (redo_from - 1, True)))

    def how_to_view(self) -> str:
        return f"tensorboard --logdir {quote(self.run.tensorboard)}"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(values), step=step)

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        batches = {name: np.asarray(image)[None] for name, image in images.items()}
        self.tracker.log_images(batches, step=step, dataformats="NHWC")
        self.tracker.tracker.flush()

    def log_result(self, report: Path, weights: Path, step: int) -> None:
        paths = {"report": str(report.resolve()), "best_weights": str(weights.resolve())}
        self.tracker.log(paths, step=step)

    def finish(self, outcome: Outcome) -> None:
        self.tracker.finish()


class WandbRun(RunTracker):
    """A run of Weights & Biases: online if the user is logged in, else in files on this machine."""

    name = "wandb"
    package = "wandb"
    install = "pip install 'groupdetr[wandb]'"
    start_remedy = "check the network, or set WANDB_MODE=offline"

    tracker: WandBTracker

    @classmethod
    def expect_usable(cls) -> None:
        super().expect_usable()
        is_asked_for = bool(os.environ.get("WANDB_MODE")) and _wandb_mode() == "online"
        if is_asked_for and not _is_logged_in_to_wandb():
            raise UsageError(
                "WANDB_MODE is online, and this machine is not logged in to Weights & Biases",
                remedy="wandb login, or set WANDB_MODE=offline",
            )

    def start(self, configuration: Mapping[str, Value], redo_from: int) -> None:
        is_online = _wandb_mode() == "online" and _is_logged_in_to_wandb()
        options: dict[str, Any] = {"id": self.state.get("id", secrets.token_hex(4))}
        # A user may have another run in this process.
        options["reinit"] = "create_new"
        if is_online:
            options["resume"] = "allow"
        elif _wandb_mode() == "online":
            options["mode"] = "offline"
        if not os.environ.get("WANDB_DIR"):
            options["dir"] = str(self.run.path)
        if not os.environ.get("WANDB_NAME"):
            options["name"] = self.run.path.resolve().name
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        self.tracker = _started(WandBTracker(project, **options))
        service_run = self.tracker.tracker
        # The configuration may have changed when the training was resumed.
        service_run.config.update(dict(configuration), allow_val_change=True)
        self.state["id"] = service_run.id
        if not service_run.resumed:
            # Offline, every part of a training is a folder of its own, so each has all records.
            self.state["last"] = None

    def how_to_view(self) -> str:
        service_run = self.tracker.tracker
        if service_run.disabled:
            return "disabled by WANDB_MODE"
        if not service_run.offline:
            return str(service_run.url)
        reason = "offline" if _wandb_mode() == "offline" else "offline, because it is not logged in"
        return f"{reason}; upload it with: wandb sync {quote(Path(service_run.dir).parent)}"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(values), step=step)

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        import wandb

        values = {name: wandb.Image(image, file_type="jpg") for name, image in images.items()}
        self.tracker.log(values, step=step)

    def log_result(self, report: Path, weights: Path, step: int) -> None:
        import wandb

        service_run = self.tracker.tracker
        with report.open(encoding="utf-8") as page:
            self.tracker.log({"report": wandb.Html(page, inject=False)}, step=step)
        service_run.summary["best_weights"] = str(weights.resolve())
        if not service_run.offline and not service_run.disabled:
            artifact = wandb.Artifact(f"weights-{service_run.id}", type="model")
            artifact.add_file(str(weights))
            service_run.log_artifact(artifact)

    def finish(self, outcome: Outcome) -> None:
        self.tracker.tracker.finish(exit_code=0 if outcome == "finished" else 1)


def _wandb_mode() -> str:
    """Return the mode that the environment and the configuration of wandb choose."""
    import wandb

    return str(wandb.setup().settings.mode)


def _is_logged_in_to_wandb() -> bool:
    """True if wandb has a key. The user is not asked for one, and no server is called."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


class MLflowRun(RunTracker):
    """A run of MLflow: on the server that the user has set, else in a database in the run folder.

    The server is that of MLFLOW_TRACKING_URI, or of ``mlflow.set_tracking_uri``.
    """

    name = "mlflow"
    package = "mlflow"
    install = "pip install 'groupdetr[mlflow]'"

    tracker: MLflowTracker
    is_local = False  # True: in the run folder

    def start(self, configuration: Mapping[str, Value], redo_from: int) -> None:
        import mlflow

        self.is_local = not mlflow.is_tracking_uri_set()
        if self.is_local:
            folder = (self.run.path / "mlflow").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            # A folder of files, MLflow's former default, is deprecated.
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
            store = str(folder)
            # An experiment has one folder for its files, and the run folder may have been moved.
            # The name is part of a query, in which it is quoted.
            experiment = store.replace("'", "_")
            artifacts = (folder / "artifacts").as_uri()
        else:
            store, experiment, artifacts = mlflow.get_tracking_uri(), PROJECT, None
        if self.state.get("store") != store:
            self.state.clear()  # a run of another store cannot be continued
        run_id = self.state.get("run_id")
        tracker = MLflowTracker(
            experiment,
            logging_dir=artifacts,
            run_id=run_id,
            run_name=None if run_id else self.run.path.resolve().name,
        )
        with _quiet("alembic", "mlflow.store.db.utils"):
            self.tracker = _started(tracker)
        if run_id is None:
            # MLflow does not let values change, so those of a new run remain.
            self.tracker.store_init_configuration(dict(configuration))
        self.state.update(store=store, run_id=self.tracker.tracker.info.run_id)

    def how_to_view(self) -> str:
        import mlflow

        uri = mlflow.get_tracking_uri()
        return f"mlflow ui --backend-store-uri {quote(uri)}" if self.is_local else str(uri)

    def log(self, values: Mapping[str, float], step: int) -> None:
        named = {_NOT_IN_METRIC_NAME.sub("_", name): value for name, value in values.items()}
        self.tracker.log(named, step=step)

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        import mlflow

        with _jpeg_files(images) as files:
            for name, file in files.items():
                folder = "/".join(file_name(part) for part in name.split("/"))
                step_file = file.rename(file.with_name(f"step-{step:07d}.jpg"))
                mlflow.log_artifact(str(step_file), folder)

    def log_result(self, report: Path, weights: Path, step: int) -> None:
        import mlflow

        mlflow.log_artifact(str(report))
        mlflow.set_tag("best_weights", str(weights.resolve()))
        if not self.is_local:
            mlflow.log_artifact(str(weights), "weights")

    def finish(self, outcome: Outcome) -> None:
        import mlflow

        statuses = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
        try:
            mlflow.end_run(statuses[outcome])
        finally:
            if self.is_local:
                # Another training in this process has a database of its own.
                mlflow.set_tracking_uri(None)


class TrackioRun(RunTracker):
    """A run of Trackio, in the folder where Trackio keeps all runs of a user."""

    name = "trackio"
    package = "trackio"
    # It is no extra of this library: the two do not agree on a version of Pillow.
    install = "pip install trackio (it replaces Pillow by an older version)"

    tracker: TrackioTracker

    def start(self, configuration: Mapping[str, Value], redo_from: int) -> None:
        # Trackio finds a run by its name, so that needs to be unique.
        name = self.state.get("run")
        if name is None:
            name = f"{self.run.path.resolve().name}-{secrets.token_hex(3)}"
        self.tracker = _started(
            TrackioTracker(
                PROJECT,
                name=name,
                config=dict(configuration),
                resume="never" if self.is_new else "allow",
                embed=False,
            )
        )
        self.state["run"] = self.tracker.tracker.name

    def how_to_view(self) -> str:
        return f"trackio show --project {PROJECT}"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(values), step=step)

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        import trackio

        with _jpeg_files(images) as files:
            values = {name: trackio.Image(str(file)) for name, file in files.items()}
            self.tracker.log(values, step=step)

    def log_result(self, report: Path, weights: Path, step: int) -> None:
        import trackio

        page = trackio.Html(report.read_text(encoding="utf-8"))
        self.tracker.log({"report": page, "best_weights": str(weights.resolve())}, step=step)

    def finish(self, outcome: Outcome) -> None:
        self.tracker.finish()


TRACKERS: dict[str, type[RunTracker]] = {
    tracker.name: tracker for tracker in (TensorBoardRun, WandbRun, MLflowRun, TrackioRun)
}
assert tuple(TRACKERS) == TRACKER_NAMES


def expect_trackers(names: Sequence[str]) -> None:
    """Raise `UsageError` unless these trackers exist and can be used."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(
                f"there is no tracker {name!r}",
                remedy=f"choose --log-with from: {', '.join(TRACKERS)}",
            )
        TRACKERS[name].expect_usable()


def _started(tracker: TrackerT) -> TrackerT:
    """Start a tracker of Accelerate, and return it."""
    tracker.start()
    return tracker


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Let these loggers of other libraries only report warnings and errors."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _jpeg_files(images: Mapping[str, Image.Image]) -> Iterator[dict[str, Path]]:
    """Write images to temporary JPEG files, each in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="groupdetr-") as folder:
        files = {}
        for number, (name, image) in enumerate(images.items()):
            file = Path(folder, str(number), "image.jpg")
            file.parent.mkdir()
            image.save(file, quality=90)
            files[name] = file
        yield files
