"""What a training sends to experiment trackers, and when.

The log of the run, ``log.jsonl``, decides: every record in it is sent once, and what a tracker
lacks when a training is resumed is sent again from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from groupdetr.console.text import quote
from groupdetr.engine.callback_list import summary
from groupdetr.engine.callbacks import DetectionLogger, TrainerInterface
from groupdetr.engine.run_folder import RunFolder, is_evaluation, write_json
from groupdetr.engine.task import EvaluationResult
from groupdetr.engine.trackers import (
    MAX_VALUE_LENGTH,
    TRACKERS,
    Outcome,
    Position,
    RunTracker,
    Value,
)
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject

NUM_IMAGES = 4  # validation images that are sent after every evaluation
MAX_SIDE = 640  # pixels of the longer side of such an image
# Returns a validation image with its detections drawn on it, and its name.
DrawImage = Callable[[int, Any, EvaluationResult], tuple[str, Image.Image]]


class TrackingCallback(DetectionLogger):
    """Sends the records of the log, images and the result of a training to trackers.

    It is used in the main process only. A tracker that fails gets nothing more, and the training
    goes on: ``warn`` is called with one line.
    """

    def __init__(
        self,
        trackers: Sequence[RunTracker],
        run: RunFolder,
        draw: DrawImage,
        warn: Callable[[str], None],
    ) -> None:
        self.run = run
        self.trackers = list(trackers)  # without those that have failed
        self.started: list[RunTracker] = []
        self.draw = draw
        self.warn = warn
        self.draws = True  # False if images could not be drawn
        self.saves = True  # False if the states of the trackers could not be saved
        self.backbone_factor = 1.0  # learning rate of the backbone, divided by that of the rest
        self.outcome: Outcome = "finished"  # of a training that ends without an error
        # The states of all trackers that the run has ever had. Some may be left out this time.
        self.states: dict[str, JsonObject] = {}

    def start(self, configuration: Mapping[str, object], redo_from: int) -> None:
        """Start the trackers. Records of the step ``redo_from`` and of later ones are sent again.

        `UsageError` for a tracker that cannot be started.
        """
        values = flat(configuration)
        for tracker in self.trackers:
            try:
                self.started.append(tracker)
                tracker.start(values, redo_from)
            except Exception as error:
                self.finish("failed")
                raise UsageError(
                    f"--log-with {tracker.name} cannot be started: {summary(error)}",
                    str(self.run.path),
                    f"{tracker.start_remedy}, or leave out {tracker.name}",
                ) from error

    def __enter__(self) -> TrackingCallback:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End all trackers, as a context manager."""
        if error is None:
            self.finish(self.outcome)
        else:
            self.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")

    def on_train_start(self, trainer: TrainerInterface) -> None:
        settings = trainer.settings
        # The schedule changes both rates by the same factor, and the log has the first one.
        self.backbone_factor = settings.backbone_lr / settings.lr if settings.lr else 0.0
        # What a tracker lacks: the whole log if it was added when the run was resumed.
        for record in self.run.records():
            self._send(record)
        self._save_states()

    def on_record(self, trainer: TrainerInterface, record: JsonObject) -> None:
        self._send(record)
        self._save_states()

    def log_detections(
        self, step: int, detections: Sequence[Any], result: EvaluationResult
    ) -> None:
        if not self.trackers or not self.draws:
            return
        try:
            images = self._draw_images(detections, result)
        except Exception as error:
            self.draws = False
            self.warn(f"no more images are sent to trackers, after an error: {summary(error)}")
            return
        for tracker in list(self.trackers):
            self._try(tracker, lambda tracker: tracker.log_images(images, step))

    def _draw_images(
        self, detections: Sequence[Any], result: EvaluationResult
    ) -> dict[str, Image.Image]:
        """Return some validation images by name, evenly spaced over the dataset."""
        images = {}
        count = len(detections)
        number = min(NUM_IMAGES, count)
        for index in (i * count // number for i in range(number)):
            name, image = self.draw(index, detections[index], result)
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            images[f"predictions/{name}"] = image
        return images

    def log_result(self, step: int) -> None:
        """Send the page of the run and the best weights, after the training has written them."""
        for tracker in list(self.trackers):
            self._try(
                tracker,
                lambda tracker: tracker.log_result(self.run.report, self.run.best, step),
            )

    def finish(self, outcome: Outcome) -> None:
        """End all trackers that were started, those that have failed included."""
        for tracker in self.started:
            is_failed = tracker not in self.trackers
            try:
                tracker.finish(outcome)
            except Exception as error:
                if not is_failed and outcome != "failed":
                    self.warn(f"{tracker.name} could not be ended: {summary(error)}")
        self.started = []

    def _send(self, record: JsonObject) -> None:
        """Send a record to the trackers that do not have it."""
        position: Position = (record["step"], is_evaluation(record))
        values = scalars(record)
        if "train/lr" in values:
            values["train/backbone_lr"] = values["train/lr"] * self.backbone_factor
        for tracker in list(self.trackers):
            if tracker.last is not None and position <= tracker.last:
                continue
            if self._try(tracker, lambda tracker: tracker.log(values, position[0])):
                tracker.state["last"] = list(position)

    def _try(self, tracker: RunTracker, send: Callable[[RunTracker], None]) -> bool:
        """Return True if ``send`` succeeds. Otherwise the tracker is not used any more."""
        try:
            send(tracker)
        except Exception as error:
            self.trackers.remove(tracker)
            self.warn(
                f"{tracker.name} failed and gets no further records: {summary(error)}; the "
                f"training goes on, and {quote(self.run.log)} has everything"
            )
            return False
        return True

    def _save_states(self) -> None:
        """Write what the trackers need to continue when the run is resumed."""
        for tracker in self.started:
            if tracker.state:
                self.states[tracker.name] = tracker.state
        if not self.started or not self.saves:
            return
        try:
            write_json(self.run.trackers, self.states)
        except Exception as error:
            self.saves = False
            self.warn(f"trackers cannot be continued if this run is resumed: {summary(error)}")


def create_tracking(
    names: Sequence[str],
    run: RunFolder,
    draw: DrawImage,
    warn: Callable[[str], None],
    resumes: bool,
) -> TrackingCallback:
    """Return the callback for these trackers, with the states of a run that is resumed."""
    states = recorded_states(run) if resumes else {}
    trackers = [TRACKERS[name](run, states.get(name, {})) for name in dict.fromkeys(names)]
    tracking = TrackingCallback(trackers, run, draw, warn)
    tracking.states = states
    return tracking


def recorded_states(run: RunFolder) -> dict[str, JsonObject]:
    """Return the states of the trackers of a run by name. A file that is damaged has none."""
    try:
        content = json.loads(run.trackers.read_text(encoding="utf-8"))
        states = {str(name): dict(state) for name, state in content.items()}
        for state in states.values():
            if state.get("last") is not None:
                step, evaluation = state["last"]
                state["last"] = [int(step), bool(evaluation)]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}
    return states


def scalars(record: JsonObject) -> dict[str, float]:
    """Return the numbers of a record of the log by name, as trackers get them.

    The names of a step begin with ``train/``, those of an evaluation with ``val/``. Metrics that
    are not defined are left out.
    """
    prefix = "val" if is_evaluation(record) else "train"
    values = {**record, **record.get("losses", {})}
    return {
        f"{prefix}/{name}": value
        for name, value in values.items()
        if isinstance(value, int | float) and name != "step"
    }


def flat(configuration: Mapping[str, object], prefix: str = "") -> dict[str, Value]:
    """Return a configuration without nesting. ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    Lists become JSON, and other objects their text.
    """
    values: dict[str, Value] = {}
    for key, value in configuration.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            values |= flat(value, f"{name}.")
        elif value is None or isinstance(value, bool | int | float):
            values[name] = value
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            values[name] = text[:MAX_VALUE_LENGTH]
    return values
