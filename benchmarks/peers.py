"""Code of other projects, imported from a checkout or an installed package.

None of it is part of this repository. If it is missing, the benchmark ends with a message.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

# Modules that the model of LW-DETR imports and that are not needed here.
UNUSED = ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint", "MultiScaleDeformableAttention")
# Packages of rfdetr whose __init__ modules import more than is needed here.
RFDETR_PACKAGES = ("rfdetr", "rfdetr.models", "rfdetr.models.heads", "rfdetr.utilities")


def require_file(path: Path, what: str, remedy: str) -> None:
    """End the program with a message if a file of another project is missing."""
    if not path.is_file():
        sys.exit(f"{what} is missing\n{path}\n{remedy}")


def lwdetr(checkout: Path, module: str) -> ModuleType:
    """Return a module of a checkout of Atten4Vis/LW-DETR.

    Packages that only its model imports need not be installed.
    """
    remedy = "pass --lwdetr a checkout: git clone https://github.com/Atten4Vis/LW-DETR"
    require_file(checkout / "models" / "lwdetr.py", "the code of LW-DETR", remedy)
    for name in UNUSED:
        sys.modules.setdefault(name, MagicMock())
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return import_module(module)


@cache
def packages_with_rfdetr(packages: Path | None) -> Path:
    """Return the folder of packages that has rfdetr in it.

    Without a folder it is that of this environment. The program ends with a message if rfdetr is
    missing.
    """
    if packages is None:
        spec = find_spec("rfdetr")
        if spec is None or spec.origin is None:
            sys.exit("the package rfdetr is missing\npip install rfdetr")
        packages = Path(spec.origin).parents[1]
    remedy = "pass a folder of packages with it: pip install --target FOLDER rfdetr"
    file = packages / "rfdetr" / "models" / "criterion.py"
    require_file(file, "the package rfdetr", remedy)
    return packages


def rfdetr(packages: Path, module: str) -> ModuleType:
    """Return a module of rfdetr, which is installed in the folder ``packages``.

    The ``__init__`` modules of its packages are not run, because they import everything else.
    """
    packages = packages_with_rfdetr(packages)
    for name in RFDETR_PACKAGES:
        package = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(packages.joinpath(*name.split(".")))]
    return import_module(module)
