"""The option --plugin, which commands that use models have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro


@dataclass(frozen=True)
class PluginOptions:
    """Base class of the options of all commands that use models."""

    plugin: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="MODULE")
    ] = field(default=(), kw_only=True)
    """Code of your own that registers models: a module, a .py file, or an installed plugin. It is
    run. The option may be given several times."""
