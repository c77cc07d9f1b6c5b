"""The model card of a detector: the README.md of its folder on the Hugging Face hub."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from groupdetr.checkpoints import hub
from groupdetr.console.text import escape_controls, quantity
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.run_folder import RunFolder
from groupdetr.report.run_summary import METRICS
from groupdetr.structures.json_object import JsonObject
from groupdetr.version import __version__

# What the hub calls the task of a detector, given what it detects.
PIPELINES = {"box": "object-detection", "mask": "image-segmentation"}
MAIN_METRICS = ("AP", "AP50", "NDS", "mAP")  # that the hub lists beside the name of the model
MAX_CLASSES = 1000  # rows of a table


@dataclass(frozen=True)
class Training:
    """What the folder of a run says about its training, without the paths of this machine."""

    dataset: str  # its name
    images: JsonObject  # the number of images of each split
    weights: str | None  # the model on the hub, or the name of the file, that it began with
    options: JsonObject
    settings: JsonObject
    metrics: JsonObject  # of the best evaluation

    @classmethod
    def from_run(cls, run: RunFolder, metrics: JsonObject, data: JsonObject) -> Training:
        """Return the training of a run.

        ``metrics`` is the content of best.json and ``data`` that of data.json; {} without them.
        """
        config = run.read_config()
        weights = config.get("weights")
        if weights is not None and hub.model_named(weights) is None:
            weights = last_part(weights)
        options = {}
        for name in ("model", "groups", "queries", "backbone"):
            if config.get(name) is not None:
                options[name] = config[name]
        source = str(config.get("pretrained_backbone", "auto"))
        options["pretrained_backbone"] = last_part(source)
        # A value with a slash may be a path.
        changed = [str(text) for text in config.get("set", ()) if not set("/\\") & set(str(text))]
        if changed:
            options["set"] = ", ".join(changed)
        images = {}
        for split, content in data.get("splits", {}).items():
            count = content.get("images") if isinstance(content, dict) else None
            if isinstance(count, int):
                images[split] = count
        return cls(
            dataset=last_part(str(config.get("data", ""))) or "a dataset without a name",
            images=images,
            weights=weights,
            options=options,
            settings=dict(config.get("settings", {})),
            metrics=metrics,
        )


def last_part(path: str) -> str:
    """Return the last part of a path of any system, so that no folder of a user is published.

    >>> last_part("C:\\\\Users\\\\me\\\\photos")
    'photos'
    """
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def model_card(
    model: str,
    recipe: Recipe,
    classes: Sequence[str],
    imgsz: int,
    kind: str,
    training: Training | None,
    license: str | None,
) -> str:
    """Return the text of a model card.

    ``model`` is owner/name on the hub. ``kind`` is what the detector finds: box, mask, or box3d for
    scenes. ``training`` is None for a weights file that is not that of a run. ``license`` is an
    identifier of the hub, such as apache-2.0; None states no license.
    """
    header = _header(model, kind, training, license)
    name = model.partition("/")[2]
    lines = [f"---\n{header}\n---", "", f"# {_cell(name)}", ""]
    num_classes = quantity(len(classes), "class", "classes")
    lines.append(
        f"A detector of {num_classes}, trained with groups of queries "
        "([Group DETR](https://arxiv.org/abs/2207.13085)) by "
        "[groupdetr](https://github.com/groupdetr/groupdetr)."
    )
    groups = f"{recipe.num_groups} of {recipe.num_queries} queries"
    if recipe.num_groups > 1:
        answer_together = recipe.inference_group is None
        groups += "; all of them detect" if answer_together else "; one of them detects"
    if recipe.square_images:
        shape = f"images that are resized to squares of {imgsz} pixels"
    else:
        side = "shortest side" if kind in PIPELINES else "height"
        shape = f"images whose {side} has {imgsz} pixels"
    facts = {
        "model": recipe.preset,
        "groups in training": groups,
        "input": shape,
        "library": f"groupdetr {__version__}",
    }
    lines += ["", *_table(("", ""), facts.items())]
    lines += ["", "## Use", "", *_usage(model, recipe.preset, kind)]
    if training is not None:
        lines += _figures(training, "images" if kind in PIPELINES else "samples")
        lines += _settings(training)
    if training is None or not training.metrics.get("per_class"):
        shown = [_cell(text) for text in classes[:MAX_CLASSES]]
        lines += ["", "## Classes", "", ", ".join(shown)]
    return "\n".join(lines) + "\n"


def _header(model: str, kind: str, training: Training | None, license: str | None) -> str:
    """Return the metadata that the hub reads, in YAML."""
    # Imported here: it takes a second.
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if training is not None:
        for metric in MAIN_METRICS:
            value = training.metrics.get(metric)
            if isinstance(value, float) and math.isfinite(value):
                results.append(
                    EvalResult(
                        task_type=PIPELINES.get(kind, "object-detection"),
                        dataset_type=training.dataset,
                        dataset_name=training.dataset,
                        dataset_split="val",
                        metric_type=metric,
                        metric_value=round(value, 4),
                    )
                )
    base = None
    if training is not None and training.weights and hub.model_named(training.weights):
        base = training.weights.partition("@")[0]
    data = ModelCardData(
        license=license,
        library_name="groupdetr",
        pipeline_tag=PIPELINES.get(kind),
        tags=["group-detr", "detr", "object-detection"],
        base_model=base,
        model_name=model.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    text: str = data.to_yaml(line_break="\n")
    return text.strip()


def _usage(model: str, preset: str, kind: str) -> list[str]:
    """Return the commands that detect with the model, and that train from it."""
    detector, inputs = "Detector", "photo.jpg"
    if kind not in PIPELINES:
        detector, inputs = "SceneDetector", "NUSCENES"
    commands = [
        "pip install groupdetr",
        f"groupdetr predict {model} {inputs}",
        f"groupdetr train DATA --model {preset} --weights {model}",
    ]
    return [
        *("```bash", *commands, "```", "", "```python", "import groupdetr", ""),
        f'detector = groupdetr.{detector}("{model}")',
        f'for result in detector.predict("{inputs}"):',
        "    print(result.names, result.scores, result.boxes)",
        "```",
    ]


def _figures(training: Training, noun: str) -> list[str]:
    """Return the metrics of the best evaluation, in percent, and those of each class.

    ``noun`` is what the dataset has: images or samples.
    """
    metrics = training.metrics
    if not metrics:
        return []
    rows = [(name, _figure(name, metrics[name])) for name in METRICS if name in metrics]
    count = training.images.get("val")
    images = f", {count} {noun}" if count is not None else ""
    lines = ["", "## Figures", ""]
    lines.append(f"Of the val split of {_cell(training.dataset)}{images}:")
    lines += ["", *_table(("metric", "value"), rows)]
    classes = metrics.get("per_class")
    if isinstance(classes, list) and classes:
        columns = [name for name in classes[0] if name in ("name", "objects", *METRICS)]
        cells = [[_figure(name, row.get(name)) for name in columns] for row in classes]
        titles = ["class" if name == "name" else name for name in columns]
        lines += ["", *_table(titles, cells[:MAX_CLASSES])]
    return lines


def _settings(training: Training) -> list[str]:
    """Return how the detector was trained."""
    rows: dict[str, object] = {"dataset": training.dataset}
    for split, count in training.images.items():
        rows[f"images in {split}"] = count
    if training.weights is not None:
        rows["first weights"] = training.weights
    rows |= training.options
    rows |= {name: value for name, value in training.settings.items() if value is not None}
    return ["", "## Training", "", *_table(("setting", "value"), rows.items())]


def _figure(name: str, value: object) -> str:
    """Return a metric as the pages show it: fractions in percent, and a dash if undefined."""
    if value is None:
        return "–"
    if isinstance(value, float):
        is_fraction = name.startswith(("AP", "AR", "NDS", "mAP"))
        return f"{100 * value:.1f} %" if is_fraction else f"{value:.3f}"
    return str(value)


def _table(titles: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in rows:
        lines.append(f"| {' | '.join(_cell(value) for value in row)} |")
    return lines


def _cell(value: object) -> str:
    """Return a value as text in Markdown. Names are data, and may have any characters."""
    text = escape_controls(str(value)).replace("\n", " ")
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
