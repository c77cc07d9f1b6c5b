"""The authors' code, run from checkouts on this machine; none of it is part of this repository."""

from __future__ import annotations

import importlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

from groupdetr.checkpoints.layout import Layout
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO, SwinDINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target
from groupdetr.weights.conditional_detr import OFFICIAL
from groupdetr.weights.dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO

SHARP = 3.0  # how much more than at the start queries tell keys apart
QUERIES = 100
PACKAGES = ("main", "models", "util", "datasets", "engine")  # what the checkouts call their modules
UNUSED = (
    "MultiScaleDeformableAttention",
    "termcolor",
    "panopticapi",
    "panopticapi.utils",
    "panopticapi.evaluation",
    "addict",
    "seaborn",
    "pandas",
    "matplotlib",
    "matplotlib.pyplot",
    "yapf",
    "yapf.yapflib",
    "yapf.yapflib.yapf_api",
)  # what they import and do not need here


@dataclass(frozen=True)
class Family:
    """A repository of theirs, and the recipe that is to equal its detector."""

    variable: str  # of the environment, that names a checkout
    recipe: Recipe
    layout: Layout
    tensors: int
    command: tuple[str, ...] = ()  # of their main.py
    table: str = "queries.anchors"
    builder: str = "models.build_DABDETR"

    @property
    def backbones(self) -> tuple[bool, ...]:
        """R50, and dilated (DC5) where there is such a model."""
        return (False, True) if hasattr(self.recipe, "dilated") else (False,)

    @property
    def repository(self) -> str:
        return os.environ.get(self.variable, "")

    @property
    def has_groups(self) -> bool:
        return (
            bool(self.repository) and "group_detr" in Path(self.repository, "main.py").read_text()
        )


ANYWHERE = ("--coco_path", "nowhere")
DAB = DABDETR(num_queries=QUERIES)
FAMILIES = {
    "conditional-detr": Family(
        "GROUPDETR_CONDITIONAL_DETR_REPO",
        ConditionalDETR(num_queries=QUERIES, dropout=0.0),
        OFFICIAL,
        564,
        table="queries.embedding",
        builder="models.build_model",
    ),
    "dab-detr": Family(
        "GROUPDETR_DAB_DETR_REPO", DAB, OFFICIAL_DAB, 590, ("-m", "dab_detr", *ANYWHERE)
    ),
    "dab-detr-3-patterns": Family(
        "GROUPDETR_DAB_DETR_REPO",
        DABDETR(num_queries=QUERIES // 2, num_patterns=3),
        OFFICIAL_DAB,
        591,
        ("-m", "dab_detr", *ANYWHERE, "--num_patterns", "3"),
    ),
    "dn-detr": Family(
        "GROUPDETR_DN_DETR_REPO",
        DNDETR(num_queries=QUERIES),
        OFFICIAL_DN,
        591,
        ("-m", "dn_dab_detr", *ANYWHERE, "--use_dn"),
        table="queries.matching.anchors",
    ),
    "dn-detr-5-copies": Family(
        "GROUPDETR_DN_DETR_REPO",
        DNDETR(num_queries=QUERIES, denoising_groups=5, num_patterns=2),
        OFFICIAL_DN,
        592,
        ("-m", "dn_dab_detr", *ANYWHERE, "--use_dn", "--num_patterns", "2"),
        table="queries.matching.anchors",
    ),
    "dab-deformable-detr": Family(
        "GROUPDETR_DAB_DETR_REPO",
        DABDeformableDETR(num_queries=QUERIES),
        OFFICIAL_DAB_DEFORMABLE,
        604,
        ("-m", "dab_deformable_detr", *ANYWHERE, "--transformer_activation", "relu"),
        builder="models.build_dab_deformable_detr",
    ),
    "dino": Family(
        "GROUPDETR_DINO_REPO",
        DINO(num_queries=QUERIES),
        OFFICIAL_DINO,
        626,
        ("-c", "config/DINO/DINO_4scale.py"),
        table="queries.matching.embedding",
        builder="models.dino.dino.build_dino",
    ),
    "dino-swin-l": Family(
        "GROUPDETR_DINO_REPO",
        SwinDINO(num_queries=QUERIES),
        OFFICIAL_DINO,
        716,
        ("-c", "config/DINO/DINO_4scale_swin.py"),
        table="queries.matching.embedding",
        builder="models.dino.dino.build_dino",
    ),
}


def without_download(*, pretrained: bool, **options: Any) -> nn.Module:
    del pretrained  # the argument is gone from torchvision, and the weights come later
    return torchvision.models.resnet.resnet50(**options)


@contextmanager
def checkout(repository: str) -> Iterator[None]:
    """Their modules importable, on today's torch, and nothing of them left behind."""
    resnet50, before = torchvision.models.resnet50, set(sys.modules)
    # their test of torch's version takes 2.x for older than 1.9
    linear = torch.nn.modules.linear
    linear._LinearWithBias = linear.NonDynamicallyQuantizableLinear  # type: ignore[attr-defined]
    sys.modules["torch._overrides"] = torch.overrides
    for name in UNUSED:
        sys.modules.setdefault(name, mock.MagicMock())
    torchvision.models.resnet50 = without_download
    sys.path.insert(0, repository)
    try:
        yield
    finally:
        sys.path.remove(repository)
        torchvision.models.resnet50 = resnet50
        for name in set(sys.modules) - before:
            if name.split(".")[0] in PACKAGES or name in UNUSED:
                del sys.modules[name]


def build(family: Family, num_groups: int, dilated: bool) -> tuple[nn.Module, nn.Module, Namespace]:
    """Their model without dropout and with weights everywhere, their criterion, and their arguments."""
    module, _, builder = family.builder.rpartition(".")
    with checkout(family.repository):
        args = configured(family) if "-c" in family.command else parsed(family, num_groups, dilated)
        model, criterion, _ = getattr(importlib.import_module(module), builder)(args)
    uncompiled(model)
    roughen(model)
    return model, criterion, args


def parsed(family: Family, num_groups: int, dilated: bool) -> Namespace:
    command = [
        "--device",
        "cpu",
        "--dropout",
        "0",
        "--num_queries",
        str(family.recipe.num_queries),
        *family.command,
    ]
    command += ["--dilation"] if dilated else []
    command += ["--group_detr", str(num_groups)] if family.has_groups else []
    return importlib.import_module("main").get_args_parser().parse_args(command)


def configured(family: Family) -> Namespace:
    """DINO's file of settings, and what its launch scripts and its command line add."""
    settings: dict[str, Any] = {}
    exec(Path(family.repository, family.command[1]).read_text(), {}, settings)
    settings.pop("_base_")
    added = {
        "device": "cpu",
        "dataset_file": "coco",
        "dn_box_noise_scale": 1.0,
        "num_queries": QUERIES,
    }
    added["use_checkpoint"] = False
    return Namespace(**{**settings, **added})


def uncompiled(model: nn.Module) -> None:
    """Their deformable attention without its CUDA kernel: by the function that their own tests compare it with."""
    for module in model.modules():
        if type(module).__name__ == "MSDeformAttn":
            scope = type(module).forward.__globals__
            kernel = scope["MSDeformAttnFunction"]
            if hasattr(kernel, "forward"):
                plain = kernel.forward.__globals__["ms_deform_attn_core_pytorch"]
                scope["MSDeformAttnFunction"] = Namespace(
                    apply=lambda v, s, _, p, w, __, plain=plain: plain(v, s, p, w)
                )


@torch.no_grad()
def roughen(model: nn.Module) -> None:
    """Weights as training leaves them and no initialisation: norms that are not the identity, box heads that are not
    zero, and attention that is sharp, so that queries differ."""
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif "backbone" in name and value.ndim == 1:
            value.normal_(0.8, 0.1) if name.endswith("weight") else value.normal_(0, 0.03)
        elif "backbone" not in name:
            value.add_(torch.randn_like(value), alpha=0.02)
        if name.endswith("in_proj_weight"):
            value.mul_(
                torch.tensor([SHARP, SHARP, 1 / SHARP]).repeat_interleave(len(value) // 3)[:, None]
            )
        elif re.search(r"[sc]a_q.*weight|ca_v.*weight", name):
            value.mul_(SHARP)
        elif "sa_v_proj.weight" in name:
            value.div_(SHARP)


class Noise:
    """What their code drew, as our `DenoisingQueries.noise`: labels and boxes of the objects of all images, g times."""

    def __init__(self) -> None:
        self.labels, self.boxes, self.counts = torch.zeros(0), torch.zeros(0), [0]
        self.of: Any = None  # our own noise, in all else

    def __call__(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        labels, boxes = labels.clone(), boxes.clone()  # [B,1,g,E,T], [B,1,g,E,T,4]
        times = labels.shape[2:4]
        for image, (theirs, theirs_boxes) in enumerate(
            zip(*map(self.of_images, (self.labels, self.boxes)))
        ):
            count = self.counts[image]
            labels[image, 0, ..., :count] = theirs.view(*times, count)
            boxes[image, 0, ..., :count, :] = theirs_boxes.view(*times, count, 4)
        return labels, boxes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def of_images(self, x: Tensor) -> Sequence[Tensor]:
        copies = len(x) // max(1, sum(self.counts))
        return (
            x.unflatten(0, (copies, sum(self.counts))).split(self.counts, dim=1)
            if copies
            else [x] * len(self.counts)
        )


class Theirs:
    """Their model and criterion, called alike whichever repository they are from."""

    def __init__(
        self, family: Family, model: nn.Module, criterion: nn.Module, args: Namespace
    ) -> None:
        self.family, self.model, self.criterion, self.args = family, model, criterion, args
        self.noise = Noise()

    @property
    def denoises(self) -> bool:
        return hasattr(self.family.recipe, "num_denoising")

    def __call__(
        self, images: Images, targets: Sequence[dict[str, Tensor]]
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Outputs, and what their criterion wants besides."""
        nested = type(self.model).forward.__globals__["NestedTensor"](images.pixels, images.padding)
        with as_default(images.pixels.dtype):
            if not self.denoises:
                return self.model(nested), ()
            with on_cpu(), self.recording(targets):
                if isinstance(self.family.recipe, DINO):
                    return self.model(nested, list(targets)), ()
                outputs, known = self.model(nested, self.denoising_arguments(targets))
            return outputs, (known,)

    def denoising_arguments(self, targets: Sequence[dict[str, Tensor]]) -> Any:
        if not self.model.training:
            return self.args.num_patterns
        most = max(1, *(len(target["labels"]) for target in targets))
        copies = self.family.recipe.denoising_groups or max(1, 100 // most)  # type: ignore[attr-defined]
        return (
            list(targets),
            copies,
            self.args.label_noise_scale,
            self.args.box_noise_scale,
            self.args.num_patterns,
        )

    @contextmanager
    def recording(self, targets: Sequence[dict[str, Tensor]]) -> Iterator[None]:
        """Note the noised labels and boxes as they go into the label embedding and the inverse sigmoid."""
        self.noise.counts = [len(target["labels"]) for target in targets]
        scope = type(self.model).forward.__globals__
        scope = scope.get("prepare_for_dn", scope.get("prepare_for_cdn")).__globals__
        inverse_sigmoid = scope["inverse_sigmoid"]

        def labels(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            self.noise.labels = (
                inputs[0] if inputs[0].ndim else self.noise.labels
            )  # the first call asks for "none"

        def boxes(x: Tensor) -> Tensor:
            self.noise.boxes = x
            return inverse_sigmoid(x)

        with (
            self.model.label_enc.register_forward_pre_hook(labels),
            mock.patch.dict(scope, inverse_sigmoid=boxes),
        ):  # type: ignore[operator, union-attr]
            yield

    def losses(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]], more: tuple[Any, ...]
    ) -> dict[str, Any]:
        """Their weighted losses under our names: theirs count layers from 0 and leave the last one without a number."""
        with on_cpu():
            found = self.criterion(outputs, targets, *more)
        last, ours = len(outputs["aux_outputs"]), {}
        for name in found:
            parts = re.fullmatch(r"(tgt_)?loss_(ce|bbox|giou)(_dn|_interm)?(?:_(\d+))?", name)
            if parts:
                stage = "proposals" if parts[3] == "_interm" else f"layer{parts[4] or last}"
                stage += "-denoising" if parts[1] or parts[3] == "_dn" else ""
                weight = self.criterion.weight_dict[
                    name if name in self.criterion.weight_dict else name[: parts.start(4) - 1]
                ]
                ours[f"{stage}/{ {'ce': 'focal', 'bbox': 'l1', 'giou': 'giou'}[parts[2]] }"] = (
                    weight * found[name]
                )
        return ours


@contextmanager
def as_default(dtype: torch.dtype) -> Iterator[None]:
    """They make tensors of torch's own type on the way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Their denoising code asks for a GPU by name."""
    to = torch.Tensor.to

    def stay(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return (
            to(self, *(arg for arg in args if arg != "cuda"), **options)
            if args != ("cuda",)
            else self
        )

    with (
        mock.patch.object(torch.Tensor, "cuda", lambda self: self),
        mock.patch.object(torch.Tensor, "to", stay),
    ):
        yield


def described(targets: Sequence[Target], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Our targets as theirs."""
    return [{"labels": target.labels, "boxes": target.boxes.to(dtype)} for target in targets]
