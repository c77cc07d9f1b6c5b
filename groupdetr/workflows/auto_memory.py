"""Fitting a training to memory: the largest micro-batches and chunks of groups that fit.

The result of a step does not depend on the size of its micro-batches or of its chunks of groups, so
these are chosen for memory alone. Batch norms that are trained are the exception: their statistics
are those of a micro-batch, so chunks of groups are preferred, and the training says so.

Of all step plans that fit, the one with the fewest passes is chosen. The memory of a step is linear
in the pixels of a micro-batch, in the groups of a chunk, and in their product. Measurements of four
small steps therefore predict the memory of all other plans.
The chosen plan is always measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from groupdetr.console.text import quantity, quote
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.memory import create_meter, format_bytes, is_out_of_memory, usable_bytes
from groupdetr.engine.optimizer import create_ema, create_optimizer
from groupdetr.engine.precision import tf32_of
from groupdetr.engine.step_groups import set_step_groups
from groupdetr.engine.task import WorstCaseBatch
from groupdetr.errors import UsageError
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.group_chunks import groups_are_independent, with_loss
from groupdetr.settings import Settings
from groupdetr.structures.step_objects import StepObjects
from groupdetr.workflows.detector_plan import DetectorPlan


def fit_to_memory(plan: DetectorPlan, may_reduce_groups: bool) -> DetectorPlan:
    """Return the plan with micro-batches and chunks of groups that fit, the same in all processes.

    ``may_reduce_groups`` is True for ``--groups auto``. It only matters for models whose groups
    cannot be computed in chunks. The choice and the measurements are printed.
    """
    problem = FitProblem.from_plan(plan)
    step_plans = problem.step_plans(may_reduce_groups)
    device = plan.accelerator.device
    # The plan must fit into the memory of every process.
    memory = min(gather_object([usable_bytes(device, plan.task.cache_bytes)]))
    situation = (
        f"{format_bytes(memory)} to be used on {device.type}; at worst, {problem.worst_case}"
    )
    plan.log(f"memory  {situation}")
    outcome: tuple[StepPlan | None, str] | None = None
    if plan.is_main_process:
        search = PlanSearch(step_plans, MemoryProbe(problem, plan.accelerator, memory), memory)
        outcome = (search.result, search.measurements())
    chosen, measured = broadcast_object_list([outcome])[0]
    if chosen is None:
        smallest = next(corner_plans(step_plans))
        raise UsageError(
            f"a step needs more memory than is available, even with {smallest} at once",
            situation,
            memory_hints(plan),
        )
    plan.log(f"        images x groups at once: {measured}")
    plan.log(f"chosen  --groups {chosen.groups} --batch {plan.settings.batch} {flags(chosen)}")
    return replace(
        plan,
        recipe=replace(plan.recipe, num_groups=chosen.groups),
        settings=replace(plan.settings, accumulate=chosen.micro_batches, group_chunk=chosen.chunk),
    )


def oom_hint(plan: DetectorPlan) -> str:
    """Return the command to type after memory ran out.

    It resumes the run with a step plan that fits. Without such a plan, return other options that
    save memory.
    """
    plan.accelerator.free_memory()
    if plan.settings.fsdp:
        # Only whole parameters can be measured.
        return f"resume with {fsdp_hints(plan.settings)} or {memory_hints(plan)}"
    failed_problem = FitProblem.from_plan(plan)
    # Search over all micro-batches and chunks, even if the user has chosen them.
    settings = replace(plan.settings, accumulate=1, group_chunk=None)
    problem = replace(failed_problem, settings=settings)
    memory = usable_bytes(plan.accelerator.device, plan.task.cache_bytes)
    probe = MemoryProbe(problem, plan.accelerator, memory)
    step_plans = problem.step_plans(may_reduce_groups=False)
    search = PlanSearch(step_plans, probe, memory, known_failures=[failed_problem.current])
    if search.result is None:
        return f"resume with {memory_hints(replace(plan, settings=settings))}"
    return f"groupdetr train --resume {quote(plan.run.path)} {flags(search.result)}"


def fsdp_hints(settings: Settings) -> str:
    """Return the options that divide a step with sharded parameters further."""
    hints = [f"--accumulate {2 * settings.accumulate}"]
    if settings.group_chunk != 1:
        hints.append("--group-chunk 1")
    return " or ".join(hints)


def flags(step_plan: StepPlan) -> str:
    """Return the options of `groupdetr train` that choose this step plan."""
    return f"--accumulate {step_plan.micro_batches} --group-chunk {step_plan.chunk}"


def memory_hints(plan: DetectorPlan) -> str:
    """Return the options that save memory and are not used yet."""
    settings = plan.settings
    hints = []
    if settings.accumulate > 1 and not settings.fsdp:
        hints.append("without --accumulate")
    if settings.group_chunk is not None and not settings.fsdp:
        hints.append("without --group-chunk")
    hints.append(f"--imgsz below {settings.imgsz}")
    if not settings.recompute:
        hints.append("--recompute")
    if plan.accelerator.mixed_precision != "bf16":
        hints.append("--precision bf16")
    return " or ".join(hints)


# step plans


@dataclass(frozen=True)
class StepPlan:
    """One way to compute a step: in how many micro-batches, and in what chunks of groups."""

    groups: int  # K
    chunk: int  # groups whose decoder and loss are computed at once
    micro_batches: int  # of a batch
    images: int  # of a micro-batch, on one process
    pixels: int  # of a micro-batch, in the worst case

    @property
    def passes(self) -> int:
        """Passes of the decoder in a step."""
        return self.micro_batches * math.ceil(self.groups / self.chunk)

    def covers(self, other: StepPlan) -> bool:
        """True if at least as much is computed at once as in the other plan."""
        return self.chunk >= other.chunk and self.images >= other.images

    def __str__(self) -> str:
        return f"{quantity(self.images, 'image')} and {quantity(self.chunk, 'group')}"


@dataclass(frozen=True)
class FitProblem:
    """The training whose steps must fit into memory, and its number of processes."""

    recipe: Recipe
    settings: Settings
    worst_case: WorstCaseBatch
    processes: int

    @classmethod
    def from_plan(cls, plan: DetectorPlan) -> FitProblem:
        """Create from a plan. The worst case is the batch with the most queries.

        Denoising queries are included.
        """

        def query_count(objects: int) -> int:
            return objects * (1 + plan.recipe.copies(objects))

        worst_case = plan.task.worst_case(query_count)
        return cls(plan.recipe, plan.settings, worst_case, plan.num_processes)

    @property
    def current(self) -> StepPlan:
        """The step plan that the settings choose."""
        groups = self.recipe.num_groups
        return self.step_plan(groups, self.settings.group_chunk or groups, self.settings.accumulate)

    def step_plan(self, groups: int, chunk: int, micro_batches: int) -> StepPlan:
        images = self.settings.batch // (self.processes * micro_batches)
        pixels = self.worst_case.pixels(images)
        return StepPlan(groups, min(chunk, groups), micro_batches, images, pixels)

    def step_plans(self, may_reduce_groups: bool) -> list[StepPlan]:
        """Return all step plans, the best first.

        A plan is better if it has more groups; with equal groups, if it has fewer passes; with
        equal passes, if it has fewer micro-batches, because these change the noise of denoising,
        and chunks of groups do not. With batch norms that are trained, fewer micro-batches come
        first, because these change their statistics. Micro-batches and chunks that the settings
        choose are kept.
        """
        plans = set()
        for groups, chunk in self._groups_and_chunks(may_reduce_groups):
            for micro_batches in self._micro_batches():
                plans.add(self.step_plan(groups, chunk, micro_batches))
        if self.trains_batch_norms:
            return sorted(plans, key=lambda plan: (-plan.groups, plan.micro_batches, plan.passes))
        return sorted(plans, key=lambda plan: (-plan.groups, plan.passes, plan.micro_batches))

    @cached_property
    def trains_batch_norms(self) -> bool:
        """True if the result of a step depends on the size of its micro-batches."""
        return self.recipe.trains_batch_norms(self.settings.freeze)

    def _micro_batches(self) -> list[int]:
        if self.settings.accumulate > 1:
            return [self.settings.accumulate]
        images = self.settings.batch // self.processes
        return [n for n in range(1, images + 1) if images % n == 0]

    def _groups_and_chunks(self, may_reduce_groups: bool) -> list[tuple[int, int]]:
        """Return pairs of the number of groups and of those computed at once."""
        groups = self.recipe.num_groups
        if not groups_are_independent(
            GROUP_ATTENTIONS[self.recipe.group_attention], MATCHES[self.recipe.match]
        ):
            # Such groups cannot be computed in chunks. Only fewer groups save memory, but the
            # group of inference must stay.
            if not may_reduce_groups:
                return [(groups, groups)]
            fewest = 1 + (self.recipe.inference_group or 0)
            return [(k, k) for k in range(fewest, groups + 1)]
        if self.settings.group_chunk is not None:
            return [(groups, self.settings.group_chunk)]
        at_once = min(groups, self.settings.groups_per_step or groups)
        return [(groups, math.ceil(at_once / passes)) for passes in range(1, at_once + 1)]


# the search for a plan that fits


class PlanSearch:
    """Finds the first of ``step_plans`` that fits into ``memory`` bytes, by measuring.

    ``measure`` returns the bytes that a plan needs, infinity if memory ran out.
    ``known_failures`` are plans that are known to need too much. The result is None if no plan
    fits.
    """

    def __init__(
        self,
        step_plans: Sequence[StepPlan],
        measure: Callable[[StepPlan], float],
        memory: int,
        known_failures: Sequence[StepPlan] = (),
    ) -> None:
        self.measure = measure
        self.memory = memory
        self.measured: dict[StepPlan, float] = dict.fromkeys(known_failures, math.inf)
        for plan in corner_plans(step_plans):
            self.needed_bytes(plan)
        self.result = self._first_that_fits(step_plans)

    def _first_that_fits(self, step_plans: Sequence[StepPlan]) -> StepPlan | None:
        for plan in step_plans:
            # Measuring takes time, so only plans that are predicted to fit are measured.
            if self.predicted_bytes(plan) <= self.memory and self.needed_bytes(plan) <= self.memory:
                return plan
        return None

    def needed_bytes(self, plan: StepPlan) -> float:
        """Return the bytes of a plan. It is measured unless a smaller plan has failed."""
        if plan not in self.measured:
            self.measured[plan] = math.inf if self.must_fail(plan) else self.measure(plan)
        return self.measured[plan]

    def must_fail(self, plan: StepPlan) -> bool:
        """True if a plan that computes no more at once has run out of memory."""
        failed = [other for other, needed in self.measured.items() if needed == math.inf]
        return any(plan.covers(other) for other in failed)

    def predicted_bytes(self, plan: StepPlan) -> float:
        """Return a prediction from everything that was measured: a least-squares fit."""
        finite = {other: needed for other, needed in self.measured.items() if needed < math.inf}
        if not finite or self.must_fail(plan):
            return math.inf
        features = np.array([linear_features(other) for other in finite])
        needed = np.array(list(finite.values()))
        coefficients = np.linalg.lstsq(features, needed, rcond=None)[0]
        return float(coefficients @ linear_features(plan))

    def measurements(self) -> str:
        """Return all measurements as text, for the console."""
        return ", ".join(
            f"{format_bytes(needed)} for {plan.images} x {plan.chunk}"
            for plan, needed in self.measured.items()
            if needed < math.inf
        )


def linear_features(plan: StepPlan) -> tuple[float, ...]:
    """Return the quantities in which memory is linear."""
    return 1.0, plan.pixels, plan.chunk, plan.pixels * plan.chunk


def corner_plans(step_plans: Sequence[StepPlan]) -> Iterator[StepPlan]:
    """Yield the plan with the fewest images and groups at once, and its next larger neighbours.

    The neighbours have the next larger number of images, of groups, and of both. These four
    determine the linear model of the memory.
    """
    images = sorted({plan.images for plan in step_plans})
    chunks = sorted({plan.chunk for plan in step_plans})
    for image_index, chunk_index in ((0, 0), (1, 0), (0, 1), (1, 1)):
        size = (
            images[min(image_index, len(images) - 1)],
            chunks[min(chunk_index, len(chunks) - 1)],
        )
        yield next(plan for plan in step_plans if (plan.images, plan.chunk) == size)


# measuring


class MemoryProbe:
    """Measures the memory that a step needs in the worst case, by computing the step.

    It uses a detector of its own, so that neither weights nor random numbers of the training
    change. ``memory`` is the limit in bytes.
    """

    def __init__(self, problem: FitProblem, accelerator: Accelerator, memory: int) -> None:
        self.problem = problem
        self.accelerator = accelerator
        self.meter = create_meter(accelerator.device, memory)
        self.state: TrainingState | None = None

    def __call__(self, plan: StepPlan) -> float:
        """Return the bytes that a step needs at its peak, infinity if memory ran out."""
        device = self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                if self.state is None or self.state.groups != plan.groups:
                    self.state = None  # free its memory before another state is built
                    self.meter(partial(self.build, plan.groups))
                return self.meter(partial(self.step, plan))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return math.inf

    def build(self, groups: int) -> None:
        """Build everything that a training keeps in memory from step to step."""
        self.state = TrainingState(self.problem, groups, self.accelerator.device)

    def step(self, plan: StepPlan) -> None:
        """Run forward and backward of one micro-batch."""
        assert self.state is not None
        device = self.accelerator.device
        micro_batch = self.problem.worst_case.batch(plan.images)
        network = self.state.model_with_loss(plan.chunk)
        targets = [target.to(device) for target in micro_batch.targets]
        step = StepObjects([len(target) for target in targets])
        with tf32_of(self.accelerator):
            with self.accelerator.autocast():
                loss, _ = network(micro_batch.images(device), targets, step)
            loss.backward()


class TrainingState:
    """Everything that a training keeps in memory from step to step.

    This is the weights, the moments of the optimizer, the moving average of the weights, and the
    buckets in which several processes exchange gradients.
    """

    def __init__(self, problem: FitProblem, groups: int, device: torch.device) -> None:
        recipe = problem.recipe
        settings = problem.settings
        self.groups = groups
        self.criterion = recipe.criterion()
        model = replace(recipe, num_groups=groups, pretrained_backbone=False).build()
        self.model = model.to(device).train()
        if settings.freeze:
            self.model.freeze(settings.freeze)
        if settings.groups_per_step is not None:
            set_step_groups(self.model, tuple(range(min(groups, settings.groups_per_step))))
        self.optimizer = create_optimizer(self.model, settings)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        # A step with zero gradients allocates the moments.
        for parameter in trainable:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.ema = create_ema(self.model, settings.ema) if settings.ema else None
        self.buckets = []
        if problem.processes > 1:
            self.buckets = [torch.empty_like(parameter) for parameter in trainable]

    def model_with_loss(self, chunk: int) -> nn.Module:
        """Return model and criterion as one network that computes ``chunk`` groups at once."""
        self.optimizer.zero_grad(set_to_none=True)
        return with_loss(self.model, self.criterion, chunk)
