"""A sampler of one's own chooses the images of every step, and its mistakes are explained."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from groupdetr.data.dataset import SampleIndex
from groupdetr.engine.callbacks import Callback, StepEnd, TrainerInterface
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.sampler import CheckedSampler
from groupdetr.engine.task import Batch
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import CallbackError
from groupdetr.settings import Settings
from groupdetr.workflows.train import train
from tests.engine.test_callbacks import KEYWORDS, create_trainer
from tests.runs import is_identical, load_checkpoint, losses_by_step


class RandomImages:
    """Draws images with replacement. The images of a step depend on the step alone."""

    def __init__(self, trainer: TrainerInterface) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.trainer.step):
            yield from self.trainer.divide_batch(images_of_step(self.trainer, step))


def images_of_step(trainer: TrainerInterface, step: int) -> list[int]:
    random = np.random.default_rng((7, step))
    return random.integers(len(trainer.task.train), size=trainer.settings.batch).tolist()


class SetSampler(Callback):
    """Replaces the sampler after a step; 0: before the first one, and again on resume."""

    def __init__(self, sampler: Any, step: int = 0) -> None:
        self.sampler, self.step = sampler, step

    def on_train_start(self, trainer: TrainerInterface) -> None:
        if self.step == 0:
            trainer.sampler = self.sampler(trainer)

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        if self.step == event.step:
            trainer.sampler = self.sampler(trainer)


@pytest.fixture
def trained_images(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The images of every step that a trainer takes."""
    images: list[list[int]] = []
    take_step = Trainer.take_step

    def recorded_step(self: Trainer, network: Any, micro_batches: list[Batch]) -> Any:
        images.append([index for batch in micro_batches for index in batch.indices])
        return take_step(self, network, micro_batches)

    monkeypatch.setattr(Trainer, "take_step", recorded_step)
    return images


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"workers": 1}])
def test_the_sampler_of_a_callback_chooses_the_images_of_every_step(
    options: dict[str, Any], trained_images: list[list[int]], shapes: Path, tmp_path: Path
) -> None:
    trainers: list[TrainerInterface] = []

    def create(trainer: TrainerInterface) -> RandomImages:
        trainers.append(trainer)
        return RandomImages(trainer)

    keywords = KEYWORDS | options | {"steps": 3}
    train(shapes, out=tmp_path / "run", callbacks=[SetSampler(create)], **keywords)
    assert trained_images == [images_of_step(trainers[0], step) for step in range(3)]


def test_a_run_with_another_sampler_resumes_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    callbacks = [SetSampler(RandomImages)]
    whole = train(shapes, out=tmp_path / "whole", callbacks=callbacks, **KEYWORDS).path
    run = train(shapes, out=tmp_path / "run", stop_after=2, callbacks=callbacks, **KEYWORDS).path
    train(resume=run, workers=1, callbacks=callbacks)
    assert is_identical(load_checkpoint(run), load_checkpoint(whole))
    assert losses_by_step(run) == losses_by_step(whole)


def test_a_sampler_that_is_replaced_during_the_training_is_used_from_the_next_step_on(
    trained_images: list[list[int]], shapes: Path, tmp_path: Path
) -> None:
    plain = create_trainer(shapes, tmp_path / "plain")
    plain.train()
    default = trained_images.copy()
    trained_images.clear()
    trainer = create_trainer(shapes, tmp_path / "run", SetSampler(RandomImages, step=2))
    trainer.train()
    assert trained_images[:2] == default[:2]
    assert trained_images[2:] == [images_of_step(trainer, step) for step in (2, 3)]


def test_the_default_sampler_may_be_wrapped(
    trained_images: list[list[int]], shapes: Path, tmp_path: Path
) -> None:
    class Reversed:
        def __init__(self, trainer: TrainerInterface) -> None:
            self.default = trainer.sampler

        def __iter__(self) -> Iterator[Sequence[int | SampleIndex]]:
            for micro_batch in self.default:
                yield micro_batch[::-1]

    create_trainer(shapes, tmp_path / "plain").train()
    default = trained_images.copy()
    trained_images.clear()
    create_trainer(shapes, tmp_path / "run", SetSampler(Reversed)).train()
    assert trained_images == [images[::-1] for images in default]


def checked(sampler: Iterable[list[int]], rank: int) -> list[list[SampleIndex]]:
    """The samples of one of two processes, for two steps of two micro-batches of three images."""
    plan: Any = SimpleNamespace(
        settings=Settings(batch=12, accumulate=2),
        micro_batch_size=3,
        accelerator=SimpleNamespace(process_index=rank),
        num_processes=2,
        task=SimpleNamespace(train=range(10)),
        run=RunFolder(Path("run")),
    )
    return list(CheckedSampler(sampler, plan, start=3, total_steps=5))


def test_an_image_that_is_drawn_several_times_is_augmented_anew_each_time() -> None:
    """The augmentation depends on the `SampleIndex`, and all of them are different."""
    samples = [
        sample
        for rank in (0, 1)
        for micro_batch in checked(itertools.repeat([4, 4, 4]), rank)
        for sample in micro_batch
    ]
    assert len(samples) == 24
    assert {sample.index for sample in samples} == {4}
    assert {sample.epoch for sample in samples} == set(range(3 * 12, 5 * 12))


def test_indices_may_be_integers_of_numpy_and_chosen_samples_are_kept() -> None:
    indices: Any = [np.int64(2), 3, SampleIndex(77, 5)]
    first = checked(itertools.repeat(indices), rank=0)[0]
    assert [sample.index for sample in first] == [2, 3, 5]
    assert all(type(sample.index) is int for sample in first)
    assert first[2].epoch == 77


# mistakes


def good(trainer: TrainerInterface) -> list[int]:
    return list(range(trainer.plan.micro_batch_size))  # type: ignore[attr-defined]


class Mistaken:
    """A sampler whose second list is ``second``."""

    def __init__(self, trainer: TrainerInterface, second: Any) -> None:
        self.trainer, self.second = trainer, second

    def __iter__(self) -> Iterator[Any]:
        yield good(self.trainer)
        yield self.second
        while True:
            yield good(self.trainer)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (
            [*range(11), 24],
            "yielded the index 24, and the training dataset has the indices 0 to 23",
        ),
        ([*range(11), -1], "yielded the index -1, and"),
        ([*range(11), "5"], "yielded '5' instead of an index"),
        ([], "yielded 0 images instead of a micro-batch of 12"),
        ([1, 2, 3], "yielded 3 images instead of a micro-batch of 12"),
        (5, "yielded 5 instead of a list of indices"),
    ],
)
def test_a_wrong_list_is_an_error_that_names_the_sampler_and_the_step(
    second: Any, expected: str, shapes: Path, tmp_path: Path
) -> None:
    trainer = create_trainer(
        shapes, tmp_path, SetSampler(lambda trainer: Mistaken(trainer, second))
    )
    with pytest.raises(CallbackError) as caught:
        trainer.train()
    assert caught.value.what.startswith(f"the sampler Mistaken {expected}")
    assert caught.value.what.endswith(", for step 2")
    assert "1 list of 12 indices for every step" in caught.value.where
    assert load_checkpoint(tmp_path)["progress"]["step"] == 1, "the first step is saved"


def test_a_sampler_that_ends_before_the_training_is_an_error(shapes: Path, tmp_path: Path) -> None:
    def three_steps(trainer: TrainerInterface) -> Iterator[list[int]]:
        for _ in range(3):
            yield good(trainer)

    trainer = create_trainer(shapes, tmp_path, SetSampler(three_steps))
    with pytest.raises(CallbackError, match="three_steps ended before the training") as caught:
        trainer.train()
    assert caught.value.what.endswith("for step 4")
    assert load_checkpoint(tmp_path)["progress"]["step"] == 3


def test_a_sampler_may_end_with_the_training(shapes: Path, tmp_path: Path) -> None:
    def four_steps(trainer: TrainerInterface) -> list[list[int]]:
        return [good(trainer)] * 4

    trainer = create_trainer(shapes, tmp_path, SetSampler(four_steps))
    trainer.train()
    assert trainer.step == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_in_a_sampler_is_an_error_that_names_the_sampler_and_the_step(
    workers: int, shapes: Path, tmp_path: Path
) -> None:
    """Loader workers take images ahead, so the training may end some steps before."""

    def broken(trainer: TrainerInterface) -> Iterator[list[int]]:
        for _ in range(5):
            yield [0, 1, 2, 3]
        raise KeyError("broken")

    run = tmp_path / "run"
    keywords = KEYWORDS | {"workers": workers}
    with pytest.raises(CallbackError) as caught:
        train(shapes, out=run, callbacks=[SetSampler(broken)], **keywords)
    assert caught.value.what == "the sampler broken failed (KeyError: 'broken'), for step 6"
    assert isinstance(caught.value.__cause__, KeyError)
    steps = load_checkpoint(run)["progress"]["step"]
    assert steps == 5 if workers == 0 else 1 <= steps <= 5


def test_a_sampler_that_is_not_iterable_is_refused_where_it_is_set(
    shapes: Path, tmp_path: Path
) -> None:
    trainer = create_trainer(shapes, tmp_path, SetSampler(lambda trainer: 3))
    with pytest.raises(CallbackError, match="SetSampler failed in on_train_start") as caught:
        trainer.train()
    assert str(caught.value.__cause__) == "a sampler must be iterable; int is not"


def test_a_batch_of_another_size_cannot_be_divided(shapes: Path, tmp_path: Path) -> None:
    trainer = create_trainer(shapes, tmp_path)
    with pytest.raises(ValueError, match="a step takes 12 images, and 11 were given"):
        trainer.divide_batch(list(range(11)))
