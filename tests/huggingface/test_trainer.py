"""Detectors with groups in the stock `transformers.Trainer`, on real images."""

from __future__ import annotations

import copy
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import groupdetr.huggingface as ghf
from tests.huggingface.detectors import DETECTORS, aligned
from tests.huggingface.images import CocoImages, collate


@pytest.fixture(scope="module")
def images(real_data: Path) -> CocoImages:
    return CocoImages(real_data, num_images=8)


def trainer(model: Any, images: CocoImages, out: Path, **options: Any) -> Any:
    """A Trainer that only knows the arguments that detection always needs."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(out),
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,  # because the images are not columns that `forward` names
        use_cpu=True,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=images, data_collator=collate(model))


def losses(finished: Any) -> list[float]:
    """The training losses that a Trainer logged."""
    return [entry["loss"] for entry in finished.state.log_history if "loss" in entry]


def answers(model: Any, images: CocoImages) -> dict[str, Tensor]:
    pixels = torch.stack([example["pixel_values"] for example in images.examples[:2]])
    with torch.no_grad():
        output = model.eval()(pixel_values=pixels)
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


# One family with learned queries and one with proposals; the slow test has them all.
SOME = ["Conditional DETR", "RT-DETRv2"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SOME else pytest.mark.slow) for name in DETECTORS],
)
def test_a_detector_is_trained_unwrapped_and_loaded(
    name: str, images: CocoImages, tmp_path: Path
) -> None:
    """Twenty steps of the stock Trainer train all groups, and transformers alone loads the result.

    That the loss falls is the claim of the test of eight images, which has more steps.
    """
    torch.manual_seed(0)
    model = ghf.with_groups(DETECTORS[name](), num_groups=3)
    run = trainer(
        model,
        images,
        tmp_path / "run",
        per_device_train_batch_size=8,
        max_steps=20,
        logging_steps=5,
        learning_rate=1e-3,
        save_strategy="no",
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run.train()
    assert all(isfinite(loss) for loss in losses(run))
    groups = [key for key in before if "other_groups" in key]
    assert all(not torch.equal(before[key], model.state_dict()[key]) for key in groups)

    ghf.without_groups(model).save_pretrained(tmp_path / "mine")
    loaded = type(model).from_pretrained(tmp_path / "mine")
    expected = answers(model, images)
    for field, value in answers(aligned(loaded), images).items():
        assert torch.equal(value, expected[field]), field


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_eight_images_are_learned(name: str, images: CocoImages, tmp_path: Path) -> None:
    """The loss of group 0, the one that answers, falls by a third and more in 400 steps."""
    torch.manual_seed(0)
    model = ghf.with_groups(DETECTORS[name](), num_groups=3)
    inputs = collate(model)(images.examples)

    def loss_of_group_0() -> float:
        torch.manual_seed(0)  # Mask2Former compares masks at random points
        with torch.no_grad():
            plain = ghf.without_groups(copy.deepcopy(model))
            return float(plain.eval()(**inputs).loss)

    before = loss_of_group_0()
    run = trainer(
        model,
        images,
        tmp_path,
        per_device_train_batch_size=8,
        max_steps=400,
        learning_rate=5e-3,
        save_strategy="no",
    )
    run.train()
    assert loss_of_group_0() < before * 2 / 3


def test_a_stopped_training_goes_on_from_its_checkpoint(images: CocoImages, tmp_path: Path) -> None:
    """The Trainer's checkpoint has the weights of all groups, and so has the resumed model.

    This is DAB-DETR, because Trainer of transformers 5.24 does not resume detectors whose weights
    `save_pretrained` renames, with or without groups.
    """

    def run(out: Path, max_steps: int, checkpoint: Path | None = None) -> Any:
        torch.manual_seed(0)
        model = ghf.with_groups(DETECTORS["DAB-DETR"](), num_groups=3)
        run = trainer(
            model,
            images,
            out,
            per_device_train_batch_size=4,
            max_steps=max_steps,
            save_steps=2,
            learning_rate=1e-3,
        )
        run.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return model.state_dict()

    whole = run(tmp_path / "whole", max_steps=4)
    run(tmp_path / "stopped", max_steps=2)
    resumed = run(tmp_path / "resumed", 4, checkpoint=tmp_path / "stopped" / "checkpoint-2")
    assert any("other_groups" in parameter for parameter in whole)
    for parameter, value in whole.items():
        assert torch.equal(value, resumed[parameter]), parameter
