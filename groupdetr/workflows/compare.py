"""`groupdetr compare`: one page about several runs, of any kind, that exist already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from groupdetr.console.output import create_console
from groupdetr.console.text import escape_controls
from groupdetr.engine.accelerator import environment, expect_device
from groupdetr.engine.run_folder import RunFolder, write_text
from groupdetr.errors import DataError, UsageError, WeightsError
from groupdetr.paper.results import Results, markdown_table
from groupdetr.paper.trainings import EXECUTION
from groupdetr.registry import experiment
from groupdetr.report.comparison import Configuration
from groupdetr.report.comparison_page import (
    ComparisonPage,
    GainRow,
    equal_time_section,
    headline,
    learning_section,
    pair_headline,
    result_section,
)
from groupdetr.report.page import Html, facts, page, prose, section
from groupdetr.report.run_summary import format_versions, summarize_run
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d import comparison as comparison2d
from groupdetr.tasks.detection3d import comparison as comparison3d
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.run_or_weights import expect_run
from groupdetr.tasks.training_config import TrainingConfig
from groupdetr.workflows.output_folder import expect_paper_folder

console = create_console()

DEFAULT_OUT = Path("runs/compare")
MAX_SHOWN = 4  # configurations whose detections are shown
# Fields of a configuration that only say where something is or how it is computed.
NOT_COMPARED = ("check", "images")


@dataclass(frozen=True)
class ComparedRuns:
    """The comparison of several runs, and its files."""

    results: Results
    folder: Path

    def to_json(self) -> JsonObject:
        """Return the content of results.json."""
        return self.results.to_json()


def compare(
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    cache: bool = True,
    device: str = "auto",
) -> ComparedRuns:
    """Compare runs that exist: curves, gains, cost, and what each detects that others miss.

    Runs that differ only in their seed are one configuration. `UsageError` for less than two runs,
    and for runs whose metrics cannot be compared.

    >>> compared = groupdetr.compare(["runs/mine", "runs/other"])
    >>> (compared.folder / "report.html").is_file()
    True
    """
    return compare_command(
        runs=[Path(run) for run in runs],
        out=None if out is None else Path(out),
        cache=cache,
        device=device,
    )


def compare_command(
    *, runs: Sequence[Path], out: Path | None, cache: bool, device: str
) -> ComparedRuns:
    """Compare runs. The arguments are the options of `groupdetr compare`."""
    expect_device(device)
    by_path: dict[Path, Path] = {}
    for run in runs:
        by_path.setdefault(run.resolve(), run)  # The same run may be given by two paths.
    folders = list(by_path.values())
    if len(folders) < 2:
        raise UsageError(
            "a comparison needs two runs or more", remedy="groupdetr compare RUN RUN ..."
        )
    folder = out or DEFAULT_OUT
    expect_paper_folder(folder)
    configs = {run: read_run(run) for run in folders}
    metrics, errors = common_metrics(configs)
    runs_of = describe(group_by_seed(configs))
    configurations = [configuration for configuration, _ in runs_of]
    results = Results(
        item="compare",
        scale="runs that existed",
        metric=metrics[0],
        metrics=metrics,
        errors=errors,
        configurations=configurations,
        gains=gains_of(configurations),
        protocol={"Runs": ", ".join(str(run) for run in folders)},
        environment=environment(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / "results.json")
    shown = {configuration.label: members[0] for configuration, members in runs_of}
    images = image_sections(shown, configs, device, cache)
    write_text(folder / "report.html", document(results, images))
    write_text(folder / "table.md", markdown_table(results.page("")))
    console.print(markdown_table(results.page("")), soft_wrap=True)
    console.print(f"open {folder / 'report.html'}")
    return ComparedRuns(results, folder)


def read_run(path: Path) -> TrainingConfig:
    """Return the configuration of a run that was evaluated at least once."""
    expect_run(path)
    if not RunFolder(path).evaluations():
        raise UsageError(
            "this run has not been evaluated yet",
            str(path),
            f"continue it first: groupdetr train --resume {path}",
        )
    return TrainingConfig.from_run(path)


def common_metrics(configs: Mapping[Path, TrainingConfig]) -> tuple[list[str], list[str]]:
    """Return the metrics that are compared, the main one first, and those of errors.

    `UsageError` if the runs have different main metrics.
    """
    kinds: dict[tuple[str, str], Path] = {}
    for run, config in configs.items():
        task = task_class(experiment(config.model).task)
        kinds.setdefault((task.kind, task.metrics[0]), run)
    if len(kinds) > 1:
        raise UsageError(
            "these runs cannot be compared: their metrics are of "
            + " and of ".join(kind for kind, _ in kinds),
            "\n".join(str(run) for run in kinds.values()),
            "compare runs of one kind",
        )
    first = next(iter(configs.values()))
    task = task_class(experiment(first.model).task)
    errors = list(comparison3d.ERROR_METRICS) if task.input_kind == "scenes" else []
    return list(task.metrics), errors


def identity(config: TrainingConfig) -> dict[str, object]:
    """Return everything that a training depends on, except for its seed."""
    content = {name: value for name, value in asdict(config).items() if name not in NOT_COMPARED}
    settings = content.pop("settings")
    for name in ("seed", *EXECUTION):
        settings.pop(name, None)
    if config.queries is None:
        content["queries"] = experiment(config.model).recipe.num_queries
    return {**content, **settings}


def group_by_seed(configs: Mapping[Path, TrainingConfig]) -> list[list[Path]]:
    """Return the runs of each configuration, sorted by seed. They differ only in their seed.

    Their data are the same: a dataset may have changed between two trainings.
    """
    groups: dict[str, list[Path]] = {}
    for run, config in configs.items():
        content = [identity(config), RunFolder(run).data_fingerprint()]
        key = json.dumps(content, sort_keys=True, default=str)
        seeds = [configs[other].settings.seed for other in groups.get(key, [])]
        if config.settings.seed in seeds:
            # The same training twice: each is a configuration of its own.
            key += str(run)
        groups.setdefault(key, []).append(run)
    return [sorted(runs, key=lambda run: configs[run].settings.seed) for runs in groups.values()]


def describe(
    members: Sequence[Sequence[Path]],
) -> list[tuple[Configuration, Sequence[Path]]]:
    """Return the configurations with their runs, and with labels that say in what they differ.

    The smallest K of each model is its baseline if it has several.
    """
    configs = [TrainingConfig.from_run(runs[0]) for runs in members]
    labels = distinguishing_labels(configs, members)
    families = [family_of(config) for config in configs]
    configurations: list[tuple[Configuration, Sequence[Path]]] = []
    for config, runs, label, family in zip(configs, members, labels, families):
        groups = [
            int(other.groups or 1) if isinstance(other.groups, int) else 1
            for other, name in zip(configs, families)
            if name == family
        ]
        is_baseline = config.groups == min(groups) < max(groups)
        configuration = Configuration(
            key=label,
            label=label,
            runs=[summarize_run(RunFolder(run)) for run in runs],
            baseline=is_baseline,
            family=family,
            details={"model": config.model, "runs": ", ".join(run.name for run in runs)},
        )
        configurations.append((configuration, runs))
    order = list(dict.fromkeys(families))

    def position(item: tuple[Configuration, Sequence[Path]]) -> tuple[int, bool, int]:
        configuration, _ = item
        # Baselines come first in their family.
        index = order.index(configuration.family)
        return index, not configuration.baseline, configuration.groups

    return sorted(configurations, key=position)


def family_of(config: TrainingConfig) -> str:
    """Return what configurations have in common that differ only in K and in their length."""
    content = identity(config)
    for name in ("groups", "epochs", "steps", "minutes"):
        content.pop(name, None)
    return json.dumps(content, sort_keys=True, default=str)


def distinguishing_labels(
    configs: Sequence[TrainingConfig], members: Sequence[Sequence[Path]]
) -> list[str]:
    """Return a name for each configuration: the model and K, and whatever else differs.

    The names are unique. Where all of this is equal, they have the name of the first run.
    """
    contents = [identity(config) for config in configs]
    names = [name for name in contents[0] if len({str(item[name]) for item in contents}) > 1]
    labels = []
    for content, runs in zip(contents, members):
        parts = [str(content["model"])] if "model" in names else []
        parts.append(f"K = {content['groups']}")
        if "epochs" in names:
            parts.append(f"{content['epochs']:g} epochs")
        for name in names:
            if name in ("model", "groups", "epochs", "data"):
                continue
            parts.append(f"{name.replace('_', ' ')} {content[name]}")
        label = ", ".join(parts)
        labels.append(label if len(label) <= 60 else runs[0].name)
    unique = []
    for label, runs in zip(labels, members):
        same = [other[0].name for other, of_other in zip(members, labels) if of_other == label]
        if len(same) > 1:
            # Runs in different folders may have the same name.
            label += f" ({runs[0].name if len(set(same)) == len(same) else runs[0]})"
        unique.append(label)
    return unique


def gains_of(configurations: Sequence[Configuration]) -> list[GainRow]:
    """Return the gains that a page reports.

    Those are the gains with groups over every baseline of their family. Without any baseline, they
    are those of all configurations over the first.
    """
    rows = []
    first, *others = configurations
    pairs = [
        (base, item)
        for item in configurations
        for base in configurations
        if base.baseline and not item.baseline and base.family == item.family
    ]
    for base, item in pairs or [(first, other) for other in others]:
        rows.append(GainRow(f"{item.label} over {base.label}", base.key, item.key))
    return rows


def image_sections(
    runs: Mapping[str, Path], configs: Mapping[Path, TrainingConfig], device: str, cache: bool
) -> list[Html]:
    """Return the sections with detections, if all runs have the same data, and it is there."""
    data = {configs[run].data.resolve() for run in runs.values()}
    contents = [RunFolder(run).data_fingerprint() for run in runs.values()]
    if len(data) > 1 or contents != contents[:1] * len(contents):
        text = "The runs were trained on different data, so their detections are not compared."
        return [section("Detections", prose(text))]
    shown = dict(list(runs.items())[:MAX_SHOWN])
    first = configs[next(iter(shown.values()))]
    kind = task_class(experiment(first.model).task).input_kind
    module = comparison3d if kind == "scenes" else comparison2d
    try:
        return [module.detections_section(first.data, shown, device, first.images, cache)]
    except (DataError, UsageError, WeightsError) as error:
        # Curves and gains need neither data nor weights, which a user may have deleted.
        text = f"The detections of these runs cannot be shown: {error.what} ({error.where})."
        console.print(escape_controls(text))
        return [section("Detections", prose(text))]


def document(results: Results, images: Sequence[Html]) -> str:
    """Return the page."""
    numbers = results.page("")
    pairs = [(row.of, row.over) for row in numbers.gains]
    body = [
        first_tiles(numbers),
        result_section(numbers, "Results"),
        learning_section(numbers),
        equal_time_section(numbers, pairs),
        *images,
    ]
    system = results.environment
    details = {
        **results.protocol,
        "Versions": format_versions(system),
        "Command": system["command"],
    }
    body.append(section("How this page was made", facts(details)))
    count = sum(len(item.runs) for item in results.configurations)
    title = f"{count} runs, {len(results.configurations)} configurations"
    lead = (
        "Runs that differ only in their seed are one configuration. Gains at equal epochs are "
        "those after the last epoch of each run; gains at equal time are read from the curves."
    )
    return page("groupdetr compare", title, lead, body)


def first_tiles(numbers: ComparisonPage) -> Html:
    """Return the tiles at the top: of two configurations, their metrics and costs, too."""
    if len(numbers.configurations) == 2:
        base, other = numbers.configurations
        return pair_headline(numbers, base, other)
    return headline(numbers)
