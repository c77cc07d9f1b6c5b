"""`groupdetr paper`: the paper's tables and figures, from their trainings to their pages."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from groupdetr.console.output import PlainConsole, create_console
from groupdetr.console.text import quantity, quote
from groupdetr.data.processor_cores import cores
from groupdetr.errors import UsageError
from groupdetr.paper.item import Choices, Equal, Item
from groupdetr.paper.items import HOURS_FORMULA, ITEMS, MINUTES_FORMULA, Cost, cost
from groupdetr.paper.items import item as item_named
from groupdetr.paper.joined_results import join_results
from groupdetr.paper.parallel_runs import ready, train_all
from groupdetr.paper.plan import Plan
from groupdetr.paper.results import Results, markdown_table
from groupdetr.paper.scale import Scale
from groupdetr.paper.slurm import submit_all
from groupdetr.paper.trainings import Store, StoredTraining, expect_same_data
from groupdetr.settings import MANY, RANGES, expect_positive, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.workflows.output_folder import expect_paper_folder

console = create_console()

DEFAULT_OUT = Path("runs/paper")


@dataclass(frozen=True)
class ItemList:
    """The items of `groupdetr paper`, and what they cost."""

    costs: dict[str, Cost]

    def to_json(self) -> list[JsonObject]:
        """Return one object for each item."""
        rows = []
        for name, item in ITEMS.items():
            row = {"item": name, "title": item.title, "shows": item.shows}
            rows.append({**row, **dataclasses.asdict(self.costs[name])})
        return rows

    def show(self) -> None:
        """Print the items as a table, and how the costs are estimated."""
        width = max(map(len, ITEMS))
        console.print(f"{'item':<{width}}  trainings  minutes  GPU hours  what it shows")
        for name, item in ITEMS.items():
            row = self.costs[name]
            numbers = f"{row.trainings:>9}  {_number(row.minutes):>7}  {_number(row.gpu_hours):>9}"
            console.print(f"{name:<{width}}  {numbers}  {item.title}", soft_wrap=True)
        console.print(f"\n{MINUTES_FORMULA}\n{HOURS_FORMULA}")
        console.print("\ngroupdetr paper ITEM trains what is missing, and writes the page.")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


@dataclass(frozen=True)
class PlanLines:
    """The trainings of an item that are not done, as lines for a scheduler."""

    lines: Sequence[JsonObject]

    def to_json(self) -> list[JsonObject]:
        """Return one object for each training."""
        return list(self.lines)

    def show(self) -> None:
        """Print one complete command for each training."""
        for line in self.lines:
            console.print(line["command"], soft_wrap=True)


@dataclass(frozen=True)
class PaperResult:
    """The results of an item, and its files. ``results`` is None if trainings are not done yet."""

    results: Results | None
    folder: Path
    submitted: Sequence[str] = ()  # names of the trainings that were submitted as jobs

    def to_json(self) -> JsonObject:
        """Return the content of results.json, or which trainings were submitted."""
        if self.results is None:
            return {"submitted": list(self.submitted)}
        return self.results.to_json()


def paper(
    *,
    item: str | None,
    data: Path | None,
    models: Sequence[str],
    groups: Sequence[int],
    queries: int | None,
    epochs: Sequence[float],
    seeds: int,
    seed: int,
    equal: Equal | None,
    plan: bool,
    on: Literal["local", "slurm"],
    slurm: Sequence[str],
    at_once: int | None,
    redraw: Sequence[Path],
    pretrained_backbone: str,
    out: Path | None,
) -> ItemList | PlanLines | PaperResult:
    """Train what an item of the paper needs and write its page, or list the items without one.

    The arguments are the options of `groupdetr paper`.
    """
    folder = out or DEFAULT_OUT
    if item is None and redraw:
        item = Results.read(redraw[0]).item
    if item is None:
        if plan or on != "local":
            option = "--plan" if plan else f"--on {on}"
            raise UsageError(
                f"{option} is for the trainings of one item, and none was named",
                remedy=f"groupdetr paper ITEM {option}; `groupdetr paper` lists the items",
            )
        return list_items(folder, data)
    chosen = item_named(item)
    if redraw:
        return redraw_item(chosen, redraw, folder / chosen.name)
    expect_options(groups, queries, epochs, seeds, seed, at_once)
    # A number that is given twice is one training, and one row of a table.
    models, groups = tuple(dict.fromkeys(models)), tuple(dict.fromkeys(groups))
    epochs = tuple(dict.fromkeys(epochs))
    expect_fitting(chosen, models, groups, epochs)
    expect_paper_folder(folder / chosen.name)
    choices = Choices(range(seed, seed + seeds), groups, equal, epochs)
    scale = Scale(
        store=Store(folder),
        data=data,
        models=models,
        groups=max(groups, default=None),
        queries=queries,
        epochs=epochs[0] if len(epochs) == 1 else None,
        pretrained_backbone=pretrained_backbone,
    )
    return run_item(chosen, scale, choices, folder / chosen.name, plan, on, slurm, at_once)


def reproduce(
    item: str | None = None,
    *,
    data: str | Path | None = None,
    models: Sequence[str] = (),
    groups: Sequence[int] = (),
    queries: int | None = None,
    epochs: Sequence[float] = (),
    seeds: int = 1,
    seed: int = 0,
    equal: Equal | None = None,
    plan: bool = False,
    on: Literal["local", "slurm"] = "local",
    slurm: Sequence[str] = (),
    at_once: int | None = None,
    redraw: str | Path | Sequence[str | Path] | None = None,
    pretrained_backbone: str = "auto",
    out: str | Path | None = None,
) -> ItemList | PlanLines | PaperResult:
    """Train what a table or figure of the paper needs, and write its page.

    The keywords are the options of `groupdetr paper`, with the same defaults. Without ``item``, the
    items are listed, unless ``redraw`` names files of one. `UsageError` for values that cannot be
    used.

    >>> plan = groupdetr.reproduce("table3", data="data/mine", plan=True)
    >>> plan.lines[0]["command"][:15]
    'groupdetr train'
    """
    files = [redraw] if isinstance(redraw, (str, Path)) else redraw or ()
    return paper(
        item=item,
        data=None if data is None else Path(data),
        models=models,
        groups=groups,
        queries=queries,
        epochs=epochs,
        seeds=seeds,
        seed=seed,
        equal=equal,
        plan=plan,
        on=on,
        slurm=slurm,
        at_once=at_once,
        redraw=[Path(file) for file in files],
        pretrained_backbone=pretrained_backbone,
        out=None if out is None else Path(out),
    )


def expect_options(
    groups: Sequence[int],
    queries: int | None,
    epochs: Sequence[float],
    seeds: int,
    seed: int,
    at_once: int | None,
) -> None:
    """Raise `UsageError` for numbers that no training can have."""
    for number in groups:
        expect_whole_number("groups", number, 1, MANY)
    for length in epochs:
        expect_positive(epochs=length)
    expect_whole_number("queries", queries, 1, MANY)
    expect_whole_number("seeds", seeds, 1, 1000)
    expect_whole_number("seed", seed, *RANGES["seed"])
    expect_whole_number("at_once", at_once, 1, 1000)


def expect_fitting(
    chosen: Item, models: Sequence[str], groups: Sequence[int], epochs: Sequence[float]
) -> None:
    """Raise `UsageError` for more models, groups or lengths than an item has."""
    name, most = chosen.name, chosen.most_models
    if most is not None and len(models) > most:
        detectors = quantity(most, "detector")
        raise UsageError(f"{name} is about {detectors}", remedy="give fewer --models")
    if len(groups) > 1 and not chosen.several_groups:
        raise UsageError(f"{name} has one number of groups", remedy="give one number of --groups")
    if len(epochs) > 1 and not chosen.several_lengths:
        raise UsageError(f"{name} has one length of training", remedy="give one number of --epochs")
    if groups and max(groups) < 2:
        raise UsageError(f"{name} is about several groups", remedy="--groups 2 or more")


def list_items(folder: Path, data: Path | None) -> ItemList:
    """Return all items with what their trainings take. What is done already is counted, too."""
    store = Store(folder)
    small = Scale(store)
    coco = Scale(store, data or Path("coco"))
    return ItemList({name: cost(item, small, coco) for name, item in ITEMS.items()})


def redraw_item(chosen: Item, files: Sequence[Path], folder: Path) -> PaperResult:
    """Write the page and the table of an item from one or more results.json, without any training.

    The results of several files are joined.
    """
    expect_paper_folder(folder)
    of_files = [Results.read(file) for file in files]
    for file, content in zip(files, of_files):
        if content.item != chosen.name:
            raise UsageError(
                f"this file has the results of {content.item}, not of {chosen.name}",
                str(file),
                f"groupdetr paper {content.item} --redraw {quote(file)}"
                if content.item in ITEMS
                else f"pass a results.json of groupdetr paper {chosen.name}",
            )
    # Nothing is written before everything is drawn: the folder may hold the results of a user.
    for file, content in zip(files, of_files):
        expect_drawable(chosen, content, file)
    results = join_results(files, of_files)
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / "results.json")
    chosen.draw(results, folder)
    console.print(f"open {folder / 'report.html'}; it has no images, which results.json lacks")
    return PaperResult(results, folder)


def expect_drawable(chosen: Item, results: Results, file: Path) -> None:
    """Raise `UsageError` unless the files of an item can be written from results that were read.

    Another version, or a user, may have written the file.
    """
    try:
        json.dumps(results.to_json(), allow_nan=False)
        chosen.document(results)
        chosen.table(results)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"the page of {chosen.name} cannot be drawn from this file: "
            f"{type(error).__name__}: {error}",
            str(file),
            f"pass a results.json that groupdetr paper {chosen.name} of this version wrote",
        ) from error


def run_item(
    chosen: Item,
    scale: Scale,
    choices: Choices,
    folder: Path,
    plan_only: bool = False,
    on: Literal["local", "slurm"] = "local",
    slurm: Sequence[str] = (),
    at_once: int | None = None,
) -> PlanLines | PaperResult:
    """Train what is missing and write the files of an item to ``folder``, or only plan it."""
    plan = chosen.plan(scale, choices)
    store = scale.store
    needed = plan.needed(store)
    expect_same_data(needed)
    missing = [run for run in needed if not run.done]
    write_data(missing, PlainConsole(stderr=True) if plan_only else console)
    if plan_only:
        print_waiting(plan, store)
        return PlanLines([plan_line(run) for run in missing])
    if missing and on == "slurm":
        submitted = submit_all(ready(missing), slurm, store)
        console.print(
            f"{quantity(len(submitted), 'training')} submitted, {len(missing)} not done; run the "
            "same command again when they are"
        )
        return PaperResult(None, folder, [run.training.name for run in submitted])
    if missing:
        console.print(f"{chosen.title}: {quantity(len(missing), 'training')} to do")
    train_all(lambda: plan.needed(store), num_parallel(at_once), console)
    expect_same_data(plan.needed(store))
    results = chosen.collect(scale, choices)
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / "results.json")
    chosen.draw(results, folder, chosen.image_sections(scale, plan.resolved(store)))
    print_results(results)
    console.print(f"open {folder / 'report.html'}")
    return PaperResult(results, folder)


def write_data(runs: Sequence[StoredTraining], notes: PlainConsole) -> None:
    """Write the drawn datasets of the trainings, unless they exist already."""
    for data in dict.fromkeys(run.training.data for run in runs):
        if data.write is not None:
            if not data.folder.exists():
                notes.print(f"writing {data.description} to {data.folder}")
            data.write(data.folder)


def plan_line(run: StoredTraining) -> JsonObject:
    """Return the command of a training, and what the training is."""
    training = run.training
    return {
        "training": training.name,
        "state": run.state,
        "steps": run.steps,
        "after": None if training.parent is None else training.parent.name,
        "command": run.command_line(),
    }


def print_waiting(plan: Plan, store: Store) -> None:
    """Print which trainings follow when the times of others are known, and which need others.

    It goes to stderr, because stdout has the commands.
    """
    notes = PlainConsole(stderr=True)
    waiting = plan.waiting(store)
    if waiting:
        count = sum(len(row.base.trainings) for row in waiting)
        notes.print(
            f"{quantity(count, 'more training')} to follow, whose length depends on the measured "
            "time of these: run this command again when these are done"
        )
    for run in plan.needed(store):
        if run.parent is not None and not run.parent.done and not run.done:
            notes.print(f"{run.training.name} starts after {run.parent.training.name}")


def num_parallel(at_once: int | None) -> int:
    """Return how many trainings run in parallel: one on a GPU, else two if there are two cores."""
    if at_once is not None:
        return at_once
    return 1 if torch.cuda.is_available() else min(2, cores())


def print_results(results: Results) -> None:
    """Print the table of the results."""
    if results.configurations and not math.isnan(results.configurations[0].seconds):
        console.print(markdown_table(results.page("")), soft_wrap=True)
