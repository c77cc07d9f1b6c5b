"""Do groups help detectors of Hugging Face transformers, at equal epochs and at equal time?

Small detectors of transformers are trained on the drawn images of the demo: with one group, with
six, and with one group for the CPU time of six. `groupdetr.huggingface` adds the groups, and the
loss is that of transformers. The backbone is EfficientNet-Lite0 with its installed ImageNet
weights. One process runs one training, so that several run side by side:

    python benchmarks/huggingface.py train "Conditional DETR" --groups 6 --seed 0 --out results
    python benchmarks/huggingface.py train "Conditional DETR" --groups 1 --seed 0 --out results
    python benchmarks/huggingface.py longer "Conditional DETR" --groups 6 --seed 0 --out results
    python benchmarks/huggingface.py table --out results

``longer`` trains one group for as many epochs as take the CPU time of the K groups of the first
seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert

import groupdetr
import groupdetr.huggingface as ghf
from groupdetr.engine.accelerator import environment
from groupdetr.evaluation.coco import evaluate
from groupdetr.modeling.backbones.efficientnet_lite import LITE0
from groupdetr.modeling.backbones.registry import BackboneOptions, build_backbone
from groupdetr.paper import small_scale
from groupdetr.structures.detections import Detections

SIZE = 128  # pixels of an image
QUERIES = 20  # N
EPOCHS = {"Conditional DETR": 4.0, "RT-DETRv2": 3.0}
BATCH = 8
# The same for one group and for six. That of Conditional DETR is the one with which this library
# trains its own on these images (groupdetr/paper/small_scale.py). No other was tried.
LEARNING_RATES = {"Conditional DETR": 2e-3, "RT-DETRv2": 1e-3}
BACKBONE_FACTOR = 0.2  # of the learning rate
WEIGHT_DECAY = 1e-4
CLIP = 0.1
WARMUP = 100  # steps
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
STRIDES = (8, 16, 32)
CHANNELS = (40, 112, 320)  # of EfficientNet-Lite0's maps of these strides


class InstalledBackbone(nn.Module):
    """EfficientNet-Lite0 with installed weights, in place of a backbone of transformers.

    Its norms, its stem and its first two stages are frozen, as in the -lite presets.
    """

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        options = BackboneOptions(
            pretrained=True,
            strides=strides,
            dilated=False,
            frozen_stages=2,
            freeze_norms=True,
            recompute=False,
            multiple=32,
            augment=None,
            bgr=False,
            channels=0,
        )
        self.model = build_backbone(LITE0, options)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each feature map [B,C,H,W] with its mask [B,H,W], which is True in the image.

        The images have no padding.
        """
        maps = self.model(pixel_values)
        return [(x, torch.ones_like(x[:, 0], dtype=torch.bool)) for x in maps]


def conditional_detr(num_classes: int) -> Any:
    """Return a Conditional DETR with a map of stride 16."""
    from transformers import (
        ConditionalDetrConfig,
        ConditionalDetrForObjectDetection,
        ConvNextConfig,
    )

    # A backbone with as many channels, which is replaced.
    backbone = ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, CHANNELS[1], 8], out_features=["stage3"]
    )
    config = ConditionalDetrConfig(
        backbone_config=backbone,
        num_labels=num_classes,
        num_queries=QUERIES,
        d_model=64,
        encoder_layers=1,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        dropout=0.0,
        auxiliary_loss=True,
    )
    model = ConditionalDetrForObjectDetection(config)
    model.model.backbone = InstalledBackbone(STRIDES[1:2])
    return model


def rt_detr_v2(num_classes: int) -> Any:
    """Return an RT-DETRv2 with maps of strides 8, 16 and 32, and with denoising."""
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    # A backbone with as many channels, which is replaced.
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, *CHANNELS],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        num_labels=num_classes,
        num_queries=QUERIES,
        d_model=64,
        encoder_hidden_dim=64,
        encoder_in_channels=list(CHANNELS),
        decoder_in_channels=[64, 64, 64],
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_denoising=20,
        hidden_expansion=0.5,
    )
    model = RTDetrV2ForObjectDetection(config)
    model.model.backbone = InstalledBackbone(STRIDES)
    return model


MODELS: dict[str, Callable[[int], Any]] = {
    "Conditional DETR": conditional_detr,
    "RT-DETRv2": rt_detr_v2,
}


class DrawnImages:
    """All images of a split in memory, with their objects as transformers takes them."""

    def __init__(self, data: Path, split: str) -> None:
        self.split = groupdetr.load_dataset(data).splits[split]
        pixels = []
        for record in self.split.records:
            image = Image.open(record.path).convert("RGB").resize((SIZE, SIZE))
            pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        self.pixels = torch.stack(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int], flips: Sequence[bool]) -> dict[str, Any]:
        """Return normalised images [B,3,H,W] and their labels, some of them mirrored."""
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        images, labels = [], []
        for index, flip in zip(indices, flips, strict=True):
            record = self.split.records[index]
            image = (self.pixels[index] / 255 - mean) / std
            corners, classes = map(torch.from_numpy, record.trainable_objects())
            size = torch.tensor([record.width, record.height] * 2)
            boxes = (box_convert(corners.float(), "xyxy", "cxcywh") / size).reshape(-1, 4)
            if flip:
                image = image.flip(-1)
                boxes = torch.cat([1 - boxes[:, :1], boxes[:, 1:]], 1)
            images.append(image)
            labels.append({"class_labels": classes, "boxes": boxes})
        return {"pixel_values": torch.stack(images), "labels": labels}


def rate_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate in a step: a linear warm-up, then half a cosine."""
    warm = min(1.0, (step + 1) / WARMUP)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def create_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return AdamW, with a lower learning rate for the backbone."""
    parameters: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameters["backbone." in name].append(parameter)
    groups = [
        {"params": parameters[False], "lr": rate},
        {"params": parameters[True], "lr": rate * BACKBONE_FACTOR},
    ]
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)


@torch.no_grad()
def average_precision(model: nn.Module, images: DrawnImages) -> float:
    """Return COCO's AP of the detector in `eval` mode, in percent."""
    model.eval()
    detections = []
    for start in range(0, len(images), 50):
        indices = range(start, min(start + 50, len(images)))
        pixels = images.batch(indices, [False] * len(indices))["pixel_values"]
        output = model(pixel_values=pixels.to(next(model.parameters()).device))
        all_logits, all_boxes = output.logits.cpu(), output.pred_boxes.cpu()
        for index, logits, boxes in zip(indices, all_logits, all_boxes, strict=True):
            detections.append(best_detections(logits, boxes, images.split.records[index]))
    model.train()
    return 100 * evaluate(images.split, detections).stats["AP"]


def best_detections(logits: Tensor, boxes: Tensor, record: Any) -> Detections:
    """Return the 100 best pairs of query and class, [N,classes] and [N,4], in pixels."""
    scores, order = logits.sigmoid().flatten().sort(descending=True)
    scores, order = scores[:100], order[:100]
    queries, classes = order // logits.shape[-1], order % logits.shape[-1]
    scale = torch.tensor([record.width, record.height] * 2)
    corners = box_convert(boxes[queries], "cxcywh", "xyxy") * scale
    return Detections(scores=scores, labels=classes, boxes=corners)


def train(
    name: str, groups: int, epochs: float, seed: int, data: Path, device: str
) -> dict[str, Any]:
    """Train a detector of transformers with K groups, and return the record of the training."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train_images, val_images = DrawnImages(data, "train"), DrawnImages(data, "val")
    model = MODELS[name](len(train_images.split.categories))
    if groups > 1:
        model = ghf.with_groups(model, groups, new_groups="random", seed=seed)
    model.to(device).train()
    random = np.random.default_rng(seed)
    steps_of_epoch = len(train_images) // BATCH
    steps = round(epochs * steps_of_epoch)
    optimizer = create_optimizer(model, LEARNING_RATES[name])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    curve, seconds = [], 0.0
    order: list[int] = []
    for step in range(steps):
        started = time.process_time()
        if len(order) < BATCH:
            order = random.permutation(len(train_images)).tolist()
        indices, order = order[:BATCH], order[BATCH:]
        batch = to_device(
            train_images.batch(indices, (random.random(BATCH) < 0.5).tolist()), device
        )
        optimizer.zero_grad()
        loss = model(**batch).loss
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(f"the loss is {float(loss)} at step {step}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        seconds += time.process_time() - started
        if (step + 1) % steps_of_epoch == 0 or step + 1 == steps:
            ap = average_precision(model, val_images)
            curve.append({"epoch": (step + 1) / steps_of_epoch, "seconds": seconds, "AP": ap})
            print(f"{name}, K = {groups}, seed {seed}: {curve[-1]}", flush=True)
    return {
        "model": name,
        "groups": groups,
        "epochs": epochs,
        "seed": seed,
        "AP": curve[-1]["AP"],
        "cpu_seconds": seconds,
        "curve": curve,
        "environment": environment(),
    }


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """Return a batch as transformers takes it on another device."""
    labels = []
    for label in batch["labels"]:
        labels.append({name: value.to(device) for name, value in label.items()})
    return {"pixel_values": batch["pixel_values"].to(device), "labels": labels}


def file_of(out: Path, name: str, row: str, seed: int | str) -> Path:
    """Return the file of the record of a training."""
    return out / f"{name.lower().replace(' ', '-')}-{row}-seed{seed}.json"


def longer_epochs(out: Path, name: str, groups: int) -> float:
    """Return the epochs of one group that take the CPU time of K groups, by the first seed."""
    one, many = (
        json.loads(min(out.glob(file_of(out, name, f"k{number}", "*").name)).read_text())
        for number in (1, groups)
    )
    ratio = max(1.0, many["cpu_seconds"] / one["cpu_seconds"])
    return math.ceil(10 * one["epochs"] * ratio) / 10


def table(out: Path) -> str:
    """Return the table of all trainings: AP of every seed, mean and deviation, CPU time."""
    lines = [
        "| detector of transformers | epochs | AP | mean ± deviation | CPU time |",
        "|---|---|---|---|---|",
    ]
    records = [json.loads(file.read_text()) for file in sorted(out.glob("*-seed*.json"))]
    for name in MODELS:
        rows = sorted({(r["epochs"], r["groups"]) for r in records if r["model"] == name})
        for epochs, groups in rows:
            row = [
                r
                for r in records
                if (r["model"], r["epochs"], r["groups"]) == (name, epochs, groups)
            ]
            row.sort(key=lambda record: record["seed"])
            values = [record["AP"] for record in row]
            deviation = statistics.stdev(values) if len(values) > 1 else math.nan
            seconds = statistics.fmean(record["cpu_seconds"] for record in row)
            aps = " / ".join(f"{value:.1f}" for value in values)
            lines.append(
                f"| {name}, K = {groups} | {epochs:g} | {aps} "
                f"| {statistics.fmean(values):.1f} ± {deviation:.1f} | {seconds:.0f} s |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run one training, or print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["train", "longer", "table"])
    parser.add_argument("model", nargs="?", choices=list(MODELS))
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--epochs", type=float, help="None: the usual number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=None, help="drawn images; None: draw them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the epochs")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.action == "table":
        print(table(arguments.out))
        return
    if arguments.model is None:
        parser.error("name a model")
    data = arguments.data or arguments.out / "shapes"
    if not data.exists():
        small_scale.shapes().write(data)
    epochs = arguments.epochs or EPOCHS[arguments.model] / (20 if arguments.quick else 1)
    groups, row = arguments.groups, f"k{arguments.groups}"
    if arguments.action == "longer":
        epochs = longer_epochs(arguments.out, arguments.model, groups)
        groups, row = 1, f"k1-time-of-k{groups}"
    record = train(arguments.model, groups, epochs, arguments.seed, data, arguments.device)
    file = file_of(arguments.out, arguments.model, row, arguments.seed)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
