"""One optimizer step: forward, criterion and backward of all micro-batches, clip, update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from groupdetr.engine.checkpoint import CheckpointState
from groupdetr.engine.host_communication import HostCommunication
from groupdetr.engine.schedule import TrainingSchedule
from groupdetr.engine.sharded_tensors import whole_tensor
from groupdetr.engine.step_groups import StepGroups
from groupdetr.engine.step_results import StepResults
from groupdetr.engine.task import Batch
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.errors import DivergedError
from groupdetr.structures.step_objects import StepObjects


class TrainingStep:
    """Takes the optimizer steps of a training in this process.

    ``step_groups`` decides which groups a step trains; None: all of them. ``hosts`` exchanges
    numbers between the processes.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        state: CheckpointState,
        schedule: TrainingSchedule,
        step_groups: StepGroups | None,
        hosts: HostCommunication,
    ) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.accelerator = plan.accelerator
        self.state = state
        self.schedule = schedule
        self.step_groups = step_groups
        self.hosts = hosts
        self.groups: tuple[int, ...] | None = None  # that the last step trained; None: all
        # True while the parameters change: some have those of the next step already.
        self.is_updating = False
        # What raises the error of the last step if its results are not finite, while the results
        # are not known yet.
        self.unchecked: Callable[[], None] | None = None

    def run(self, network: nn.Module, micro_batches: list[Batch]) -> StepResults:
        """Run one optimizer step over all micro-batches of a batch, and return its results.

        `DivergedError` if they are not finite. On a GPU they are not known yet. They are checked
        in the next step, when the host has waited for the matching costs in any case.
        """
        self.seed()
        fraction = self.schedule.fraction()
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.step_groups is not None:
            # The optimizer has the rows of the groups and not the parameters that hold them.
            self.state.model.zero_grad(set_to_none=True)
            self.groups = self.step_groups.begin(self.state.progress.step, fraction)
        step_objects = self.step_objects(micro_batches)
        sums: dict[str, Tensor] = {}
        for i, micro_batch in enumerate(micro_batches):
            is_last = i + 1 == len(micro_batches)
            with self.gradient_sync(network, is_last):
                loss, parts = self.compute_loss(network, micro_batch, step_objects)
                loss.div(len(micro_batches)).backward()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part / len(micro_batches)
        grad_norm = nn.utils.clip_grad_norm_(self.state.model.parameters(), self.settings.clip)
        grad_norm = whole_tensor(grad_norm)
        # Those of the step before.
        self.require_finite()
        results = self.to_host(sums, grad_norm)
        self.unchecked = self.check_of(results, micro_batches)
        if not results.is_late:
            self.require_finite()
        # Until the step is counted, the state is not that of a whole step.
        self.is_updating = True
        if self.step_groups is not None:
            self.step_groups.give_gradients(self.state.optimizer, fraction)
        self.state.optimizer.step()
        if self.state.ema is not None:
            self.state.ema.update_parameters(self.state.model)
        return results

    def require_finite(self) -> None:
        """Raise `DivergedError` if the results of the last step are not finite.

        It must be called before the state of the training is saved or evaluated. On a GPU it waits
        for the last step.
        """
        check, self.unchecked = self.unchecked, None
        if check is not None:
            check()

    def check_of(self, results: StepResults, micro_batches: list[Batch]) -> Callable[[], None]:
        """Return a function that raises `DivergedError` if the results are not finite."""
        what = "the loss or its gradient is not finite"
        # The batches themselves would be kept until the next step.
        error = partial(
            self.divergence_error,
            what,
            [index for batch in micro_batches for index in batch.indices],
            self.state.progress.step + 1,
        )

        def check() -> None:
            if not results.are_finite():
                raise error()

        return check

    def compute_loss(
        self, network: nn.Module, micro_batch: Batch, step_objects: StepObjects
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of all losses, which has a gradient, and the losses by name."""
        device = self.accelerator.device
        targets = [target.to(device) for target in micro_batch.targets]
        try:
            with self.accelerator.autocast():
                return network(micro_batch.images(device), targets, step_objects)
        except DivergedError as error:
            # If the step before has spoilt the weights, its images are the ones to look at.
            self.require_finite()
            raise self.divergence_error(
                f"{error.what} ({error.where})", micro_batch.indices, self.state.progress.step + 1
            ) from error

    def step_objects(self, micro_batches: list[Batch]) -> StepObjects:
        """Return the numbers of objects of all images of this step, over all processes.

        Every loss of this step is divided by them, however the step is divided.
        """
        counts = [len(target) for batch in micro_batches for target in batch.targets]
        # All processes have equally many images.
        counts = self.hosts.gather(counts)
        return StepObjects(counts, parts=len(micro_batches) * self.plan.num_processes)

    def to_host(self, sums: dict[str, Tensor], grad_norm: Tensor) -> StepResults:
        """Average the losses over processes, and let them and the norm be copied to the host."""
        losses = self.accelerator.reduce(torch.stack(list(sums.values())), "mean")
        return StepResults([*sums], torch.cat([losses, grad_norm[None]]))

    def gradient_sync(self, network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Let processes exchange gradients once a step, with the last micro-batch.

        With FSDP, every micro-batch exchanges them: otherwise each process would have to keep the
        gradients of all parameters until the last one.
        """
        if is_last or self.settings.fsdp:
            return nullcontext()
        return self.accelerator.no_sync(network)

    def seed(self) -> None:
        """Seed torch by (seed, step, process), so that a resumed run draws the same numbers."""
        key = (self.settings.seed, self.state.progress.step, self.accelerator.process_index)
        torch.manual_seed(hash(key) & 0x7FFFFFFFFFFFFFFF)

    def divergence_error(self, what: str, indices: list[int], step: int) -> DivergedError:
        """Return the error for values of a step that are not finite.

        ``indices`` are those of its images.
        """
        names = self.plan.task.train_image_names(indices)
        return DivergedError(
            f"{what}, at step {step}",
            f"images: {', '.join(names)}",
            f"the last good checkpoint is {self.plan.run.last}; "
            "lower --lr or --clip and resume, or check these images",
        )
