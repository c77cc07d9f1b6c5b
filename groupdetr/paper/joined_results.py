"""Several files with results of one item, such as those of two machines, as the results of one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from groupdetr.errors import UsageError
from groupdetr.paper.results import Results
from groupdetr.paper.trainings import name_without_seed
from groupdetr.report.comparison import Configuration
from groupdetr.structures.json_object import JsonObject

# Entries of the protocol that are lists, separated by commas: `protocol_of` and `Item.collect`.
LISTS = ("Detectors", "Queries of a group", "Seeds")


def join_results(files: Sequence[Path], results: Sequence[Results]) -> Results:
    """Return the results of several files as one: all configurations, each with all its seeds.

    All files have results of one item, and the order is theirs. `UsageError` if they were measured
    in different ways, if one training has different numbers in two files, or if trainings of one
    configuration differ in more than their seed.
    """
    first = results[0]
    for file, other in zip(files, results):
        _expect_same_kind(files[0], first, file, other)
        if other.extra and len(files) > 1:
            raise UsageError(
                f"results of {other.item} cannot be joined: they hold more than its trainings",
                str(file),
                "give one file, or train all seeds with one --out",
            )
    by_key: dict[str, Configuration] = {}
    for file, other in zip(files, results):
        for configuration in other.configurations:
            key = configuration.key
            known = by_key.get(key)
            by_key[key] = configuration if known is None else _join(known, configuration, file)
    gains = {(row.of, row.over): row for other in results for row in other.gains}
    environments: list[JsonObject] = []
    for other in results:
        for environment in (other.environment, *other.other_environments):
            if environment not in environments:
                environments.append(environment)
    return dataclasses.replace(
        first,
        configurations=list(by_key.values()),
        gains=list(gains.values()),
        protocol=_join_protocols(results),
        other_environments=environments[1:],
    )


def _expect_same_kind(first_file: Path, first: Results, file: Path, other: Results) -> None:
    for name in ("scale", "metric"):
        of_first, of_other = getattr(first, name), getattr(other, name)
        if of_first != of_other:
            raise UsageError(
                f"these results cannot be joined with those of {first_file}: their {name} is "
                f"{of_other}, and not {of_first}",
                str(file),
                "join results that were measured in the same way",
            )


def _join(known: Configuration, other: Configuration, file: Path) -> Configuration:
    """Return the runs of both. A run that both have is one run."""
    runs = {run.seed: run for run in known.runs}
    first = known.runs[0]
    for run in other.runs:
        if name_without_seed(run.name, run.seed) != name_without_seed(first.name, first.seed):
            raise UsageError(
                f"{known.label}: {run.name} differs from {first.name} in more than the seed",
                str(file),
                "join results of trainings with the same settings",
            )
        same_seed = runs.setdefault(run.seed, run)
        if same_seed.to_json() != run.to_json():
            raise UsageError(
                f"{known.label}: seed {run.seed} has other numbers here than in a file before",
                str(file),
                "each training can be in one file only: leave one of the files out",
            )
    return dataclasses.replace(known, runs=[runs[seed] for seed in sorted(runs)])


def _join_protocols(results: Sequence[Results]) -> dict[str, object]:
    """Return what the trainings have in common. What differs is listed."""
    names = dict.fromkeys(itertools.chain.from_iterable(other.protocol for other in results))
    joined: dict[str, object] = {}
    for name in names:
        values = [str(other.protocol[name]) for other in results if name in other.protocol]
        if name in LISTS:
            parts = itertools.chain.from_iterable(value.split(", ") for value in values)
            joined[name] = ", ".join(dict.fromkeys(parts))
        else:
            joined[name] = "; ".join(dict.fromkeys(values))
    return joined
