"""The table of all presets and experiments, for commands that do not wait for torch.

`preset_table.json` says of every model what `groupdetr presets` prints. A test compares it with
`groupdetr.experiments`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from groupdetr.errors import UsageError

FILE = Path(__file__).with_suffix(".json")
# Installed packages declare their plugins under this name (see docs/extending.md).
ENTRY_POINTS = "groupdetr.models"


@dataclass(frozen=True)
class PresetRow:
    """What `groupdetr presets` prints of a model."""

    groups: int  # K
    queries: int  # N
    epochs: float
    reported: float | None  # the paper's metric in percent, if it has this training
    about: str
    kind: str  # what its metrics measure: box, mask or box3d


@dataclass(frozen=True)
class PresetTable:
    """The models by name, and those that this library does not have, with the reason."""

    presets: Mapping[str, PresetRow]
    unavailable: Mapping[str, str]

    def to_text(self) -> str:
        """Return the content of the file: one line for each model."""
        lines = [
            f"  {json.dumps(name)}: {json.dumps(asdict(row))}" for name, row in self.presets.items()
        ]
        unavailable = json.dumps(dict(self.unavailable), indent=1)
        presets = ",\n".join(lines)
        return f'{{\n "presets": {{\n{presets}\n }},\n "unavailable": {unavailable}\n}}\n'


def read_preset_table() -> PresetTable:
    """Return the table of the models that are defined by this library itself."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    rows = {name: PresetRow(**row) for name, row in content["presets"].items()}
    return PresetTable(rows, content["unavailable"])


def unknown_model(
    name: str,
    known: Collection[str],
    unavailable: Mapping[str, str],
    loaded_plugins: Collection[str] = (),
) -> UsageError:
    """Return the error for a name that is not among the ``known`` ones. It names similar models."""
    if name in unavailable:
        return UsageError(
            f"there is no model {name!r}: {unavailable[name]}",
            remedy="use rf-detr-large, which is under the Apache License 2.0",
        )
    similar = get_close_matches(name, known, n=3, cutoff=0.6)
    remedies = [f"did you mean {' or '.join(similar)}?"] if similar else []
    remedies.append("`groupdetr presets` lists all")
    installed = sorted(point.name for point in plugins() if point.name not in loaded_plugins)
    if installed:
        remedies.append(f"a plugin may define it: --plugin {' or '.join(installed)}")
    return UsageError(f"there is no model {name!r}", remedy="; ".join(remedies))


def plugins() -> list[EntryPoint]:
    """Return the plugins of installed packages."""
    return list(entry_points(group=ENTRY_POINTS))
