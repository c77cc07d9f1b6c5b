"""The options of `groupdetr doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class DoctorOptions(PluginOptions):
    """Show the environment, and test that the groups of a detector are separate.

    Perturbing one group changes no other, K groups in one pass equal K passes, and inference equals
    the primary group. The exit code is 1 if one of these does not hold.

    With --module, the test is of any nn.Module of yours: perturbing the queries of one group of one
    image changes no other group and no other image, and the first module that leaks is named.
    """

    model: str | None = None
    """A preset, an experiment, or a run. None: conditional-detr-tiny."""
    module: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """A function of yours, my_package.my_module:build_model or my_file.py:build_model, which is
    run. It returns a module, (module, inputs) or (module, inputs, num_groups)."""
    queries: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")
    ] = ()
    """With --module: the parameter or input that is the queries, K*N rows, if there are several
    candidates. The option may be given several times."""
    groups: int | None = None
    """K of the test, if the model is not a run. None: 3, or what the function of --module says."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object (docs/json.md) instead of text."""
