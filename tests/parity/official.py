"""The authors' code, run from checkouts of their repositories. None of it is part of this one."""

from __future__ import annotations

import importlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
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
from groupdetr.detectors.dino import DINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.modeling.backbones.registry import SWIN_LARGE
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target
from groupdetr.weights.official_conditional_detr import OFFICIAL
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO

SHARPNESS = 3.0  # factor of the logits of attention, compared with their initialisation
QUERIES = 100
PACKAGES = ("main", "models", "util", "datasets", "engine")  # modules of the checkouts
# Modules that their code imports and that are not needed here.
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
)


@dataclass(frozen=True)
class Family:
    """A repository of the authors, and the recipe of ours that equals its detector."""

    variable: str  # environment variable with the path of a checkout
    recipe: Recipe
    layout: Layout
    tensors: int  # number in their checkpoint
    command: tuple[str, ...] = ()  # arguments of their main.py
    table: str = "queries.anchors"  # our query table with K*N rows in their file
    builder: str = "models.build_DABDETR"  # their function that builds model and criterion

    @property
    def backbones(self) -> tuple[bool, ...]:
        """The values of ``dilated``: R50, and DC5 if there is such a model."""
        return (False, True) if hasattr(self.recipe, "dilated") else (False,)

    @property
    def repository(self) -> str:
        return os.environ.get(self.variable, "")

    @property
    def has_groups(self) -> bool:
        """True if the checkout is of a branch with Group DETR."""
        if not self.repository:
            return False
        return "group_detr" in Path(self.repository, "main.py").read_text()


NO_DATA = ("--coco_path", "nowhere")
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
        "GROUPDETR_DAB_DETR_REPO", DAB, OFFICIAL_DAB, 590, ("-m", "dab_detr", *NO_DATA)
    ),
    "dab-detr-3-patterns": Family(
        "GROUPDETR_DAB_DETR_REPO",
        DABDETR(num_queries=QUERIES // 2, num_patterns=3),
        OFFICIAL_DAB,
        591,
        ("-m", "dab_detr", *NO_DATA, "--num_patterns", "3"),
    ),
    "dn-detr": Family(
        "GROUPDETR_DN_DETR_REPO",
        DNDETR(num_queries=QUERIES),
        OFFICIAL_DN,
        591,
        ("-m", "dn_dab_detr", *NO_DATA, "--use_dn"),
        table="queries.matching.anchors",
    ),
    "dn-detr-5-copies": Family(
        "GROUPDETR_DN_DETR_REPO",
        DNDETR(num_queries=QUERIES, denoising_groups=5, num_patterns=2),
        OFFICIAL_DN,
        592,
        ("-m", "dn_dab_detr", *NO_DATA, "--use_dn", "--num_patterns", "2"),
        table="queries.matching.anchors",
    ),
    "dab-deformable-detr": Family(
        "GROUPDETR_DAB_DETR_REPO",
        DABDeformableDETR(num_queries=QUERIES),
        OFFICIAL_DAB_DEFORMABLE,
        604,
        ("-m", "dab_deformable_detr", *NO_DATA, "--transformer_activation", "relu"),
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
        DINO(num_queries=QUERIES, backbone=SWIN_LARGE, frozen_stages=-1),
        OFFICIAL_DINO,
        716,
        ("-c", "config/DINO/DINO_4scale_swin.py"),
        table="queries.matching.embedding",
        builder="models.dino.dino.build_dino",
    ),
}


def without_download(*, pretrained: bool, **options: Any) -> nn.Module:
    return torchvision.models.resnet.resnet50(**options)


@contextmanager
def checkout(repository: str) -> Iterator[None]:
    """Make their modules importable with today's torch, and remove them again afterwards."""
    resnet50, before = torchvision.models.resnet50, set(sys.modules)
    # Their version check takes torch 2.x for older than 1.9, which had these names.
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
    """Return their model without dropout, their criterion and their arguments.

    No weight of the model has a special value such as zero.
    """
    module, _, builder = family.builder.rpartition(".")
    with checkout(family.repository):
        if "-c" in family.command:
            args = read_config(family)
        else:
            args = parse_arguments(family, num_groups, dilated)
        model, criterion, _ = getattr(importlib.import_module(module), builder)(args)
    use_pytorch_attention(model)
    roughen(model)
    return model, criterion, args


def parse_arguments(family: Family, num_groups: int, dilated: bool) -> Namespace:
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


def read_config(family: Family) -> Namespace:
    """Return DINO's configuration with what its launch scripts and command line add."""
    settings: dict[str, Any] = {}
    exec(Path(family.repository, family.command[1]).read_text(), {}, settings)
    settings.pop("_base_")
    added = {
        "device": "cpu",
        "dataset_file": "coco",
        "dn_box_noise_scale": 1.0,
        "num_queries": QUERIES,
        "use_checkpoint": False,
    }
    return Namespace(**{**settings, **added})


def use_pytorch_attention(model: nn.Module) -> None:
    """Replace the CUDA kernel of their deformable attention.

    The replacement is the PyTorch function that their own tests compare the kernel with.
    """
    for module in model.modules():
        if type(module).__name__ == "MSDeformAttn":
            namespace = type(module).forward.__globals__
            kernel = namespace["MSDeformAttnFunction"]
            if hasattr(kernel, "forward"):  # not replaced yet: all modules share the namespace
                core = kernel.forward.__globals__["ms_deform_attn_core_pytorch"]
                namespace["MSDeformAttnFunction"] = Namespace(apply=without_kernel(core))


def without_kernel(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function with the arguments of the kernel that calls their PyTorch function."""

    def apply(
        value: Tensor,
        shapes: Tensor,
        level_starts: Tensor,
        locations: Tensor,
        weights: Tensor,
        step: int,
    ) -> Tensor:
        return core(value, shapes, locations, weights)

    return apply


@torch.no_grad()
def roughen(model: nn.Module) -> None:
    """Change weights as training does, so that no part of the model can be wrong unnoticed.

    Norms are not the identity, box heads are not zero, and attention is sharp, so that queries
    differ.
    """
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif "backbone" in name and value.ndim == 1:
            value.normal_(0.8, 0.1) if name.endswith("weight") else value.normal_(0, 0.03)
        elif "backbone" not in name:
            value.add_(torch.randn_like(value), alpha=0.02)
        # Larger queries and keys make attention sharp. Smaller values of self-attention keep it
        # from making all queries equal.
        if name.endswith("in_proj_weight"):
            factors = torch.tensor([SHARPNESS, SHARPNESS, 1 / SHARPNESS])
            value.mul_(factors.repeat_interleave(len(value) // 3)[:, None])
        elif re.search(r"[sc]a_q.*weight|ca_v.*weight", name):
            value.mul_(SHARPNESS)
        elif "sa_v_proj.weight" in name:
            value.div_(SHARPNESS)


class RecordedNoise:
    """Replaces our `DenoisingQueries.noise` by the noise that their code drew.

    ``labels`` and ``boxes`` are those of the objects of all images, g times. ``counts`` are the
    numbers of objects of the images.
    """

    def __init__(self) -> None:
        self.labels, self.boxes, self.counts = torch.zeros(0), torch.zeros(0), [0]
        self.original: Any = None  # our own noise, for all other attributes

    def __call__(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        labels, boxes = labels.clone(), boxes.clone()  # [B,1,g,E,T], [B,1,g,E,T,4]
        copies, per_object = labels.shape[2:4]
        their_labels = self.split_by_image(self.labels)
        their_boxes = self.split_by_image(self.boxes)
        for image, count in enumerate(self.counts):
            drawn_labels = their_labels[image].view(copies, per_object, count)
            drawn_boxes = their_boxes[image].view(copies, per_object, count, 4)
            labels[image, 0, ..., :count] = drawn_labels
            boxes[image, 0, ..., :count, :] = drawn_boxes
        return labels, boxes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def split_by_image(self, x: Tensor) -> Sequence[Tensor]:
        """Return [g*E,T_b,...] of every image b."""
        total = sum(self.counts)
        copies = len(x) // max(1, total)
        if copies == 0:
            return [x] * len(self.counts)
        return x.unflatten(0, (copies, total)).split(self.counts, dim=1)


class Theirs:
    """Their model and criterion, which are called in the same way for all repositories."""

    def __init__(
        self, family: Family, model: nn.Module, criterion: nn.Module, args: Namespace
    ) -> None:
        self.family, self.model, self.criterion, self.args = family, model, criterion, args
        self.noise = RecordedNoise()

    @property
    def denoises(self) -> bool:
        return hasattr(self.family.recipe, "num_denoising")

    def __call__(
        self, images: Images, targets: Sequence[dict[str, Tensor]]
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Return their outputs, and further arguments of their criterion."""
        nested = type(self.model).forward.__globals__["NestedTensor"](images.pixels, images.padding)
        with as_default(images.pixels.dtype):
            if not self.denoises:
                return self.model(nested), ()
            with on_cpu(), self.record_noise(targets):
                if isinstance(self.family.recipe, DINO):
                    return self.model(nested, list(targets)), ()
                outputs, known = self.model(nested, self.denoising_arguments(targets))
            return outputs, (known,)

    def denoising_arguments(self, targets: Sequence[dict[str, Tensor]]) -> Any:
        if not self.model.training:
            return self.args.num_patterns
        max_objects = max(1, *(len(target["labels"]) for target in targets))
        copies = self.family.recipe.denoising_groups  # type: ignore[attr-defined]
        copies = copies or max(1, 100 // max_objects)
        return (
            list(targets),
            copies,
            self.args.label_noise_scale,
            self.args.box_noise_scale,
            self.args.num_patterns,
        )

    @contextmanager
    def record_noise(self, targets: Sequence[dict[str, Tensor]]) -> Iterator[None]:
        """Record noised labels and boxes as inputs of label embedding and inverse sigmoid."""
        self.noise.counts = [len(target["labels"]) for target in targets]
        namespace = type(self.model).forward.__globals__
        prepare = namespace.get("prepare_for_dn", namespace.get("prepare_for_cdn"))
        namespace = prepare.__globals__
        inverse_sigmoid = namespace["inverse_sigmoid"]

        def record_labels(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # DN-DETR's first call embeds the scalar label "no object".
            if inputs[0].ndim:
                self.noise.labels = inputs[0]

        def record_boxes(x: Tensor) -> Tensor:
            self.noise.boxes = x
            return inverse_sigmoid(x)

        label_embedding: nn.Module = self.model.get_submodule("label_enc")
        with (
            label_embedding.register_forward_pre_hook(record_labels),
            mock.patch.dict(namespace, inverse_sigmoid=record_boxes),
        ):
            yield

    def losses(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]], more: tuple[Any, ...]
    ) -> dict[str, Any]:
        """Return their weighted losses under our names.

        Theirs count layers from 0, and the last layer has no number.
        """
        with on_cpu():
            losses = self.criterion(outputs, targets, *more)
        last = len(outputs["aux_outputs"])
        terms = {"ce": "focal", "bbox": "l1", "giou": "giou"}
        weights = self.criterion.weight_dict
        weighted = {}
        for name, loss in losses.items():
            match = re.fullmatch(r"(tgt_)?loss_(ce|bbox|giou)(_dn|_interm)?(?:_(\d+))?", name)
            if not match:
                continue
            target_prefix, term, suffix, layer = match.groups()
            ours = "proposals" if suffix == "_interm" else f"layer{layer or last}"
            if target_prefix or suffix == "_dn":
                ours += "-denoising"
            # A layer without a weight of its own has that of the last.
            weight = weights[name] if name in weights else weights[name[: match.start(4) - 1]]
            weighted[f"{ours}/{terms[term]}"] = weight * loss
        return weighted


@contextmanager
def as_default(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype, which their code uses for some tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Ignore ``.cuda()`` and ``.to("cuda")``: their denoising code names the GPU."""
    to = torch.Tensor.to

    def stay(self: Tensor, *args: Any, **options: Any) -> Tensor:
        if args == ("cuda",):
            return self
        return to(self, *(arg for arg in args if arg != "cuda"), **options)

    with (
        mock.patch.object(torch.Tensor, "cuda", lambda self: self),
        mock.patch.object(torch.Tensor, "to", stay),
    ):
        yield


def to_their_targets(targets: Sequence[Target], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    return [{"labels": target.labels, "boxes": target.boxes.to(dtype)} for target in targets]
