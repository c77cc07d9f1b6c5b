"""`groupdetr demo`: Table 2 of the paper for one small detector, on drawn data."""

from __future__ import annotations

from pathlib import Path

from groupdetr.paper.demo import Demo
from groupdetr.paper.item import Choices
from groupdetr.paper.scale import Scale
from groupdetr.paper.trainings import Store
from groupdetr.workflows.output_folder import expect_paper_folder
from groupdetr.workflows.paper import PaperResult, expect_options, run_item

DEFAULT_OUT = Path("runs/demo")


def demo(
    *,
    model: str | None,
    groups: int | None,
    epochs: float | None,
    seeds: int,
    seed: int,
    at_once: int | None,
    out: Path | None,
) -> PaperResult:
    """Train with one group, with K groups, and with one group for the time of K.

    ``model`` is a small preset. ``groups``, ``epochs`` and ``at_once`` (trainings in parallel) have
    defaults if they are None. There are ``seeds`` trainings of each kind; the first has the seed
    ``seed``. What is trained already is not trained again.
    """
    groups_given = () if groups is None else (groups,)
    expect_options(groups_given, None, () if epochs is None else (epochs,), seeds, seed, at_once)
    folder = out or DEFAULT_OUT
    models = () if model is None else (model,)
    scale = Scale(Store(folder), models=models, groups=groups, epochs=epochs)
    choices = Choices(range(seed, seed + seeds), groups_given)
    item = Demo()
    item.plan(scale, choices)  # Wrong options are told before anything is written.
    expect_paper_folder(folder)
    result = run_item(item, scale, choices, folder, at_once=at_once)
    assert isinstance(result, PaperResult)
    return result
