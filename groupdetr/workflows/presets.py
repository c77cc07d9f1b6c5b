"""`groupdetr presets`: list the models and the paper's experiments."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from rich.text import Text

from groupdetr.console.output import create_console
from groupdetr.errors import UsageError
from groupdetr.files.preset_table import FILE, PresetRow, PresetTable, read_preset_table
from groupdetr.structures.json_object import JsonObject

if TYPE_CHECKING:
    from groupdetr.experiments.experiment import Experiment

WIDTH = 80  # columns of the list, on any terminal
MAX_NAME = 44  # columns; the values of a longer name are on the next line
ABBREVIATIONS = "K: groups in training; N: queries of a group; AP, NDS: the paper's, in percent"

# What comes before the slash in the name of an experiment, and the title of its section.
TABLES = {
    "table2": "Table 2: without groups, for the training time of K groups",
    "table3": "Table 3: without and with groups, 12 epochs",
    "table4": "Table 4: without and with groups, 50 epochs (DINO: 36)",
    "masks": "Instance segmentation",
    "scenes": "Multi-view 3D detection",
    "table7": "Table 7: which parts of Group DETR matter",
    "fig8": "Fig. 8: groups and denoising",
    "fig9": "Fig. 9: numbers of groups",
}
# What the metrics of a task measure, and the title of its presets and the paper's metric.
PRESETS = {
    "box": "Presets: boxes in images",
    "mask": "Presets: instance masks in images",
    "box3d": "Presets: 3D boxes in scenes of six cameras",
}
METRICS = {"box": "AP", "mask": "mask AP", "box3d": "NDS"}


@dataclass(frozen=True)
class PresetList:
    """The models that `presets` lists, by name."""

    rows: Mapping[str, PresetRow]

    def to_json(self) -> JsonObject:
        """Return all hyperparameters of every model."""
        from groupdetr.registry import experiment

        return {name: describe(experiment(name)) for name in self.rows}

    def show(self) -> None:
        """Print a section for the presets of each task, and one for each table of the paper."""
        console = create_console()
        console.print(ABBREVIATIONS)
        for title, rows in sections(self.rows).items():
            console.print()
            console.print(Text(console.printable(title), style="bold"))
            for line in format_section(rows):
                console.print(line)


def presets(*, pattern: str) -> PresetList:
    """Return the presets and the experiments of the paper whose names match ``pattern``.

    ``*`` stands for any text. `UsageError` if no name matches.
    """
    rows = known_models().presets
    matching = {name: row for name, row in rows.items() if fnmatch(name, pattern)}
    if not matching:
        raise UsageError(
            f"no model matches {pattern!r}", remedy=" or ".join(similar_searches(pattern, rows))
        )
    return PresetList(matching)


def known_models() -> PresetTable:
    """Return the table of all models, those of plugins included.

    Plugins register their models in `groupdetr.registry`. As long as nothing has imported it, there
    are none, and the table is read from its file, which takes much less time.
    """
    if "groupdetr.registry" not in sys.modules:
        return read_preset_table()
    from groupdetr.registry import EXPERIMENTS

    return table_of(EXPERIMENTS)


def table_of(experiments: Mapping[str, Experiment]) -> PresetTable:
    """Return the table of these models."""
    from groupdetr.experiments.presets import UNAVAILABLE

    rows = {}
    for name, experiment in experiments.items():
        rows[name] = PresetRow(
            groups=experiment.recipe.num_groups,
            queries=experiment.recipe.num_queries,
            epochs=experiment.settings.epochs,
            reported=experiment.reported,
            about=experiment.about,
            kind=kind_of(experiment),
        )
    return PresetTable(rows, UNAVAILABLE)


def write_preset_table() -> None:
    """Write the file of the table anew, after a preset was changed."""
    from groupdetr.experiments.by_name import library_experiments

    FILE.write_text(table_of(library_experiments()).to_text(), encoding="utf-8")


def similar_searches(pattern: str, names: Collection[str]) -> Iterator[str]:
    """Yield commands that list similar names, or all names."""
    text = pattern.strip("*")
    if any(fnmatch(name, f"*{text}*") for name in names):
        yield f"groupdetr presets '*{text}*'"
    else:
        for name in get_close_matches(text, names, n=1, cutoff=0.6):
            yield f"groupdetr presets {name}"
    yield "groupdetr presets, which lists all models"


def describe(experiment: Experiment) -> JsonObject:
    """Return all hyperparameters of a model, and what its metrics measure: box, mask or box3d."""
    from groupdetr.registry import recipe_to_dict

    return {
        "about": experiment.about,
        "task": experiment.task,
        "kind": kind_of(experiment),
        "reported": experiment.reported,
        "recipe": recipe_to_dict(experiment.recipe),
        "settings": asdict(experiment.settings),
    }


def kind_of(experiment: Experiment) -> str:
    """Return what the metrics of a model measure: box, mask or box3d."""
    from groupdetr.tasks.registry import task_class

    return task_class(experiment.task).kind


# The list


def sections(rows: Mapping[str, PresetRow]) -> dict[str, dict[str, PresetRow]]:
    """Return the models of each section, by its title.

    The presets come first. They are sorted by what they detect, all others by their table.
    """
    by_title: dict[str, dict[str, PresetRow]] = {title: {} for title in PRESETS.values()}
    for name, row in rows.items():
        table, slash, _ = name.partition("/")
        title = TABLES.get(table, table) if slash else PRESETS[row.kind]
        by_title.setdefault(title, {})[name] = row
    return {title: models for title, models in by_title.items() if models}


def format_section(models: Mapping[str, PresetRow]) -> list[str]:
    """Return the lines of a section: a header, and one for each model.

    A line has at most `WIDTH` columns. A longer description goes on in the next line, but names
    are neither broken nor cut, because users copy them.
    """
    has_reported = any(model.reported is not None for model in models.values())
    kinds = {model.kind for model in models.values()}
    header = ["K", "N", "epochs"]
    if has_reported:
        header.append(METRICS[kinds.pop()] if len(kinds) == 1 else "metric")
    rows = []
    for model in models.values():
        row = [str(model.groups), str(model.queries), f"{model.epochs:g}"]
        if has_reported:
            row.append("" if model.reported is None else f"{model.reported:.1f}")
        rows.append(row)

    widths = [max(map(len, column)) for column in zip(header, *rows)]
    name_width = min(MAX_NAME, max(map(len, models)))
    lines = [_join("name".ljust(name_width), header, widths)]
    for (name, model), row in zip(models.items(), rows):
        if len(name) > name_width:
            lines.append(name)
            name = ""
        start = _join(name.ljust(name_width), row, widths)
        descriptions = textwrap.wrap(model.about, WIDTH - len(start) - 2) or [""]
        lines.append(f"{start}  {descriptions[0]}")
        for description in descriptions[1:]:
            lines.append(f"{'':{len(start)}}  {description}")
    return [line.rstrip() for line in lines]


def _join(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of a name and of cells that are aligned on the right."""
    aligned = [cell.rjust(width) for cell, width in zip(cells, widths)]
    return "  ".join([name, *aligned])
