"""Detectors with groups from folders that `save_pretrained` or the Trainer of transformers wrote.

Such a folder has the weights of the plain detector, and those of the other groups under names with
"other_groups". transformers loads the plain detector, and says that it does not use the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from groupdetr.errors import UsageError, WeightsError
from groupdetr.huggingface.grouping import OTHER_GROUPS
from groupdetr.huggingface.wrapping import with_groups


def load_with_groups(folder: str | Path) -> Any:
    """Return the detector with all its groups that is saved in a folder.

    ``folder`` was written by `save_pretrained` of a model with groups, or is a checkpoint of the
    Trainer. The optimizer's state is not loaded. `WeightsError` if no groups are saved there.

    >>> model = ghf.load_with_groups("run/checkpoint-500")
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "transformers is not installed", remedy="pip install 'groupdetr[huggingface]'"
        ) from error

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(
            "this is not a folder with a model of transformers",
            where=f"{folder}: no config.json",
            remedy="pass the folder that save_pretrained or the Trainer wrote",
        )
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = str(config.architectures[0]) if config.architectures else ""
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise UsageError(
            "config.json does not name a class of transformers",
            where=f"{folder / 'config.json'}: architectures is {config.architectures}",
            remedy='write that of the plain detector there: ["DetrForObjectDetection"]',
        )
    plain = model_class.from_pretrained(folder)
    if hasattr(config, "group_detr"):
        return plain  # transformers itself knows its groups

    weights = weights_of_other_groups(folder)
    if not weights:
        raise WeightsError(
            "the folder has a detector without groups",
            where=str(folder),
            remedy="load it with from_pretrained of transformers, and call with_groups(model)",
        )
    model = with_groups(plain, num_groups=1 + num_other_groups(weights))
    report = model.load_state_dict(weights, strict=False)
    missing = [name for name in report.missing_keys if OTHER_GROUPS in name]
    if missing or report.unexpected_keys:
        raise WeightsError(
            "the weights of the groups do not fit the detector",
            where=f"{folder}: {', '.join([*missing, *report.unexpected_keys][:5])}",
            remedy="load it with the version of groupdetr that saved it",
        )
    return model


def weights_of_other_groups(folder: Path) -> dict[str, Tensor]:
    """Return the weights of groups 1 to K-1 from the safetensors files of a folder."""
    from safetensors import safe_open

    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- it is not a dict
                if OTHER_GROUPS in name.split("."):
                    weights[name] = file.get_tensor(name)
    return weights


def num_other_groups(weights: dict[str, Tensor]) -> int:
    """Return K-1, from the shape of a table [K-1,N,C] or the numbers of the copies of a head."""
    numbers = []
    for name, weight in weights.items():
        parts = name.split(".")
        if parts[-1] == OTHER_GROUPS:
            numbers.append(len(weight))
        else:  # other_groups.enc_output.3.0.weight is of the fourth copy
            numbers.append(int(parts[parts.index(OTHER_GROUPS) + 2]) + 1)
    return max(numbers)
