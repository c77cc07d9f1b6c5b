"""RF-DETR-nano here and in Roboflow's package rfdetr: a training step, its memory, and inference.

    python benchmarks/rf_detr.py [PACKAGES] [--segmentation] [--parts step criterion inference]

``PACKAGES`` is a folder of packages with rfdetr in it (`pip install --target FOLDER rfdetr`);
without it, rfdetr is that of this environment. Both have the same random weights, images and
objects; the column ``loss`` shows that they compute the same. The masks of RF-DETR-Seg are compared
at random points, so there the losses differ a little.

``step`` is a training step without the optimizer, in fp32 and eager mode: K = 1 and K = 13, all
groups at once or one at a time. ``kept`` is the memory that the backward pass needs at once,
without parameters, and ``to one`` is that of K = 1 here. ``criterion`` is the time of matching,
losses and their gradients alone, with many objects in each image. ``inference`` is one image,
also in transformers.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import measure
import peers
import torch
import tyro
from measure import Stopwatch
from torch import Tensor, nn

import groupdetr
from groupdetr.data.worst_case import filled_masks
from groupdetr.modeling.group_chunks import ChunkedModelWithLoss, ModelWithLoss
from groupdetr.structures.outputs import Outputs

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.dense import dense_masks

Part = Literal["step", "criterion", "inference"]


@dataclass
class Options:
    packages: tyro.conf.Positional[Path | None] = None
    segmentation: bool = False
    parts: tuple[Part, ...] = ("step", "criterion", "inference")
    groups: int = 13
    queries: int = 300
    side: int | None = None  # None: that of the model
    batch: int = 2
    objects: int = 20  # of each image in a step
    many_objects: int = 100  # of each image for the criterion alone
    compiled: bool = False  # also our criterion compiled, which needs a C++ compiler
    rounds: int = 3
    device: str = "cpu"
    threads: int = 1
    quick: bool = False  # fewer rounds, and fewer queries and groups
    out: Path | None = None  # JSON

    @property
    def pixels(self) -> int:
        return self.side or (312 if self.segmentation else 384)


QUICK = {"side": 192, "queries": 100, "rounds": 1}


class ModelPair:
    """rfdetr's model and ours with the same weights, and a batch of noise."""

    def __init__(self, options: Options, groups: int, objects: int) -> None:
        torch.manual_seed(0)
        self.options = options
        self.their_config = their_config(options, groups)
        self.theirs, self.their_criterion = their_model(options.packages, self.their_config)
        self.theirs.train().to(options.device)
        self.their_criterion.to(options.device)
        preset = "rf-detr-seg-nano" if options.segmentation else "rf-detr-nano"
        fields = {"num_groups": groups, "num_queries": options.queries}
        self.ours = groupdetr.create_model(preset, **fields).train()
        load_their_weights(self.ours, self.theirs)
        self.ours.to(options.device)
        self.our_criterion = groupdetr.create_criterion(self.ours)
        side = options.pixels
        pixels = torch.randn(options.batch, 3, side, side)
        self.images = groupdetr.Images.from_list([*pixels.to(options.device)])
        self.targets = []
        for _ in range(options.batch):
            centres = 0.25 + 0.5 * torch.rand(objects, 2)
            boxes = torch.cat([centres, 0.05 + 0.25 * torch.rand(objects, 2)], dim=1)
            masks = filled_masks(boxes, side, side) if options.segmentation else None
            labels = torch.randint(1, 91, (objects,))
            target = groupdetr.Target(labels, boxes, masks)
            self.targets.append(target.to(options.device))

    def their_targets(self) -> list[dict[str, Tensor]]:
        side = self.options.pixels
        targets = []
        for target in self.targets:
            values = {"labels": target.labels, "boxes": target.boxes}
            if target.masks is not None:
                values["masks"] = dense_masks(target.masks, (side, side)).bool()
            targets.append(values)
        return targets

    def their_outputs(self) -> dict[str, Any]:
        from rfdetr.utilities.tensors import NestedTensor

        return self.theirs(NestedTensor(self.images.pixels, self.images.padding))

    def their_loss_of(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> Tensor:
        losses = self.their_criterion(outputs, targets)
        weights = self.their_criterion.weight_dict
        return torch.stack([losses[name] * weights[name] for name in weights]).sum()

    def their_loss(self, targets: list[dict[str, Tensor]]) -> Tensor:
        return self.their_loss_of(self.their_outputs(), targets)

    def our_loss(self, model_with_loss: nn.Module) -> Tensor:
        loss, _ = model_with_loss(self.images, self.targets)
        return loss


def their_config(options: Options, groups: int) -> Any:
    """Return the configuration of rfdetr's model, whose weights are random."""
    import_rfdetr(options.packages)
    from rfdetr import config

    name = "RFDETRSegNanoConfig" if options.segmentation else "RFDETRNanoConfig"
    return getattr(config, name)(
        # With a name of weights, none are downloaded for the backbone alone.
        pretrain_weights="none.pth",
        group_detr=groups,
        num_queries=options.queries,
        device=options.device,
    )


def import_rfdetr(packages: Path | None) -> None:
    """Make rfdetr importable. The program ends with a message if it is missing."""
    packages = peers.packages_with_rfdetr(packages)
    # It must not load anything from the hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", module="rfdetr")
    if str(packages) not in sys.path:
        sys.path.append(str(packages))


def their_model(packages: Path | None, model_config: Any) -> tuple[nn.Module, Any]:
    """Return rfdetr's model with random weights, and its criterion."""
    import_rfdetr(packages)
    from rfdetr import config
    from rfdetr.models.lwdetr import build_criterion_from_config, build_model_from_config

    is_segmentation = model_config.segmentation_head
    train_class = config.SegmentationTrainConfig if is_segmentation else config.TrainConfig
    train_config = train_class(dataset_dir=".", output_dir=".")
    model = build_model_from_config(model_config, train_config)
    criterion, _ = build_criterion_from_config(model_config, train_config)
    return model, criterion


def load_their_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Load the weights of rfdetr's model into ours."""
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({"model": theirs.state_dict()}, file.name)
        groupdetr.load_weights(ours, file.name)


@dataclass
class LossStep:
    """A training step of one of the two models."""

    model: nn.Module
    loss: Callable[[], Tensor]
    device: str
    value: float = 0.0  # the loss of the last run

    def __call__(self) -> measure.Times:
        """Run forward and backward once, and return the times of the parts."""
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # the points of masks
        stopwatch = Stopwatch(self.device)
        loss = self.loss()
        stopwatch.lap("forward, match, compare")
        loss.backward()
        stopwatch.lap("backward")
        self.value = loss.item()
        return stopwatch.times


def loss_step(variant: str, options: Options, groups: int) -> LossStep:
    """Return the step of a variant: "rfdetr", "ours", or ours with one group at a time."""
    pair = ModelPair(options, groups, options.objects)
    if variant == "rfdetr":
        their_loss = partial(pair.their_loss, pair.their_targets())
        return LossStep(pair.theirs, their_loss, options.device)
    model_with_loss: nn.Module = ModelWithLoss(pair.ours, pair.our_criterion)
    if variant != "ours":
        model_with_loss = ChunkedModelWithLoss(pair.ours, pair.our_criterion, 1)
    return LossStep(pair.ours, partial(pair.our_loss, model_with_loss), options.device)


def compare_steps(options: Options) -> dict[str, dict[str, Any]]:
    """Return a row for every variant of a training step."""
    steps = {
        "K = 1, rfdetr": loss_step("rfdetr", options, 1),
        "K = 1, ours": loss_step("ours", options, 1),
        f"K = {options.groups}, rfdetr": loss_step("rfdetr", options, options.groups),
        f"K = {options.groups}, ours": loss_step("ours", options, options.groups),
        f"K = {options.groups}, ours, one group at a time": loss_step(
            "ours, one group at a time", options, options.groups
        ),
    }
    timings = measure.time_interleaved(steps, options.rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name, step in steps.items():
        kept = measure.saved_for_backward(step, step.model.parameters())
        baseline = f"{name.split(',')[0]}, rfdetr"
        rows[name] = {
            "step, ms": timings.ms(name),
            "speed-up": timings.speed_up(name, over=baseline),
            "kept, MiB": kept,
            "loss": f"{step.value:.6f}",
        }
    one = rows["K = 1, ours"]["kept, MiB"]
    for row in rows.values():
        row["to one"] = f"{row['kept, MiB'] / one:.3f}"
    return rows


def compare_criteria(options: Options) -> dict[str, dict[str, Any]]:
    """Return a row for both criteria, from the outputs of a model to their gradients."""
    pair = ModelPair(options, options.groups, options.many_objects)
    with torch.no_grad():
        their_outputs = pair.their_outputs()
        outputs = pair.ours(pair.images, pair.targets)
    targets = pair.their_targets()

    def with_gradients(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.detach().requires_grad_(x.is_floating_point())
        if isinstance(x, dict):
            return {name: with_gradients(value) for name, value in x.items()}
        return [with_gradients(value) for value in x] if isinstance(x, list) else x

    their_outputs = with_gradients(their_outputs)
    layers = [layer.map(with_gradients) for layer in outputs.layers]
    assert outputs.queries is not None
    our_outputs = Outputs(layers, outputs.queries.map(with_gradients))

    def theirs() -> None:
        torch.manual_seed(0)
        pair.their_loss_of(their_outputs, targets).backward()

    def ours(criterion: Callable[..., dict[str, Tensor]]) -> None:
        torch.manual_seed(0)
        losses = criterion(our_outputs, pair.targets)
        torch.stack([*losses.values()]).sum().backward()

    runs = {
        "rfdetr": measure.timed(theirs, options.device),
        "ours": measure.timed(partial(ours, pair.our_criterion), options.device),
    }
    if options.compiled:
        compiled = groupdetr.create_criterion(pair.ours)
        compiled.compile_parts()
        runs["ours, compiled"] = measure.timed(partial(ours, compiled), options.device)
    timings = measure.time_interleaved(runs, options.rounds)
    return {
        f"criterion, {options.many_objects} objects, {name}": {
            "step, ms": timings.ms(name),
            "speed-up": timings.speed_up(name, over="rfdetr"),
        }
        for name in runs
    }


def transformers_model(options: Options) -> nn.Module:
    """Return the detector of transformers, with random weights of its own."""
    import transformers

    vit = transformers.RfDetrDinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=12,
        image_size=options.pixels,
        patch_size=12 if options.segmentation else 16,
        num_windows=1 if options.segmentation else 2,
        out_features=["stage3", "stage6", "stage9", "stage12"],
        layer_norm_eps=1e-6,
    )
    config = transformers.RfDetrConfig(
        backbone_config=vit,
        num_queries=options.queries,
        decoder_n_points=2,
        decoder_layers=4 if options.segmentation else 2,
        num_labels=91,
        dropout=0.0,
        layer_norm_eps=1e-6,
    )
    name = "InstanceSegmentation" if options.segmentation else "ObjectDetection"
    model: nn.Module = getattr(transformers, f"RfDetrFor{name}")(config)
    return model.eval()


@torch.inference_mode()
def compare_inference(options: Options) -> dict[str, dict[str, Any]]:
    """Return a row for the forward pass of every implementation on one image."""
    pair = ModelPair(options, options.groups, 1)
    pair.theirs.eval()
    pair.ours.eval()
    images = groupdetr.Images.from_list([pair.images.pixels[0]])
    from rfdetr.utilities.tensors import NestedTensor

    nested = NestedTensor(images.pixels, images.padding)
    hugging_face = transformers_model(options).to(options.device)
    runs = {
        "rfdetr": measure.timed(lambda: pair.theirs(nested), options.device),
        "ours": measure.timed(lambda: pair.ours(images), options.device),
        "transformers": measure.timed(lambda: hugging_face(images.pixels), options.device),
    }
    timings = measure.time_interleaved(runs, 4 * options.rounds)
    return {
        f"inference, {name}": {
            "step, ms": timings.ms(name),
            "speed-up": timings.speed_up(name, over="rfdetr"),
        }
        for name in runs
    }


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    rows: dict[str, dict[str, Any]] = {}
    if "step" in options.parts:
        rows |= compare_steps(options)
    if "criterion" in options.parts:
        rows |= compare_criteria(options)
    if "inference" in options.parts:
        rows |= compare_inference(options)
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
