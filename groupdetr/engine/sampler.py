"""The sampler of a training, which chooses the images of every step, if it is the user's own."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace

from groupdetr.console.text import quantity
from groupdetr.data.dataset import SampleIndex
from groupdetr.engine.callback_list import resume_remedy, summary
from groupdetr.engine.callbacks import Sampler
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.errors import CallbackError

ENDLESS = 1 << 40  # steps of a training that ends after some minutes


class CheckedSampler:
    """The micro-batches of a user's sampler for the steps from ``start``, with every index checked.

    The sampler yields ``accumulate`` lists for every step, each with as many indices as a
    micro-batch has images. `CallbackError` for anything else, with the sampler and the step.

    The augmentation of an image depends on (seed, epoch, image). An own sampler has no epochs, and
    it may draw an image several times in a step. So every draw gets a number of its own in the
    place of the epoch: its position among all images that the training draws.
    """

    def __init__(
        self, sampler: Sampler, plan: TrainingPlan, start: int, total_steps: int | None
    ) -> None:
        self.sampler = sampler
        self.start = start
        self.stop = total_steps or ENDLESS
        self.batch = plan.settings.batch
        self.accumulate = plan.settings.accumulate
        self.size = plan.micro_batch_size
        self.rank = plan.accelerator.process_index
        self.num_processes = plan.num_processes
        self.num_images = len(plan.task.train)
        self.run = plan.run

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Yield the micro-batches until the training ends, or fewer if the sampler has fewer."""
        micro_batches: Iterator[Sequence[int | SampleIndex]] | None = None
        for step in range(self.start, self.stop):
            for i in range(self.accumulate):
                try:
                    micro_batches = micro_batches or iter(self.sampler)
                    indices = next(micro_batches)
                except StopIteration:
                    return
                except Exception as error:
                    raise self.error(step, f"failed ({summary(error)})") from error
                yield self.check(indices, step, i)

    def check(
        self, indices: Sequence[int | SampleIndex], step: int, micro_batch: int
    ) -> list[SampleIndex]:
        """Return the samples of micro-batch number ``micro_batch`` of the step after ``step``."""
        try:
            indices = list(indices)
        except TypeError:
            raise self.error(step, f"yielded {indices!r} instead of a list of indices") from None
        if len(indices) != self.size:
            raise self.error(
                step, f"yielded {len(indices)} images instead of a micro-batch of {self.size}"
            )
        first = step * self.batch + micro_batch * self.size * self.num_processes + self.rank
        samples = []
        for j, index in enumerate(indices):
            if isinstance(index, SampleIndex):
                # A sampler may take the indices of another step; its images have one size anyway.
                sample = replace(index, step=step)
            else:
                draw = first + j * self.num_processes
                sample = SampleIndex(draw, self.to_int(index, step), step)
            if not 0 <= sample.index < self.num_images:
                raise self.error(
                    step,
                    f"yielded the index {sample.index}, and the training dataset has the indices "
                    f"0 to {self.num_images - 1}",
                )
            samples.append(sample)
        return samples

    def to_int(self, index: object, step: int) -> int:
        """Return the index as an int. It may be an integer of NumPy or a tensor."""
        try:
            return operator.index(index)  # type: ignore[arg-type]
        except TypeError:
            raise self.error(step, f"yielded {index!r} instead of an index") from None

    def error(self, step: int, what: str) -> CallbackError:
        """Return the error of the sampler at the step after ``step``."""
        return CallbackError(
            f"the sampler {sampler_name(self.sampler)} {what}, for step {step + 1}",
            f"a sampler yields {quantity(self.accumulate, 'list')} of {self.size} indices for "
            "every step of this training",
            resume_remedy(self.run),
        )


def sampler_name(sampler: Sampler) -> str:
    """Return the class of a sampler, or the function if it is a generator."""
    name: str = getattr(sampler, "__qualname__", type(sampler).__qualname__)
    return name.split("<locals>.")[-1]
