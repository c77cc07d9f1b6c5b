"""Other people's code, from where it lies on this machine; none of it is part of this repository."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

UNUSED = ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint", "MultiScaleDeformableAttention")


def lwdetr(checkout: Path, module: str) -> ModuleType:
    """A module of a checkout of Atten4Vis/LW-DETR. What its model alone imports need not be there."""
    for name in UNUSED:
        sys.modules.setdefault(name, MagicMock())
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return import_module(module)


def rfdetr(packages: Path, module: str) -> ModuleType:
    """A module of rfdetr, installed in the folder ``packages``. Its packages are entered without what they import for
    everything else."""
    for name in ("rfdetr", "rfdetr.models", "rfdetr.models.heads", "rfdetr.utilities"):
        package = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(packages.joinpath(*name.split(".")))]
    return import_module(module)
