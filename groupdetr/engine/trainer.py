"""The training loop: batch, forward, criterion, backward, clip, step, log; and what happens between epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from groupdetr.data.batch import Batch, Stream, training_loader
from groupdetr.engine import optimizer as optim
from groupdetr.engine.accelerator import peak_memory_mb
from groupdetr.engine.checkpoint import Progress, State
from groupdetr.engine.matching_instability import Examination
from groupdetr.engine.progress import Reporter
from groupdetr.engine.run_folder import RunFolder, write_json
from groupdetr.engine.task import Compared, Evaluated, Task
from groupdetr.errors import DivergedError
from groupdetr.settings import Settings

SAVE_SECONDS = 300.0  # what a kill may cost at most, with or without --save-every
FOREVER = 1 << 40  # steps of a training that only the clock ends


@dataclass
class Trainer:
    """A run: what is trained, on what, how, where it is written. ``save_best`` writes the weights that users load."""

    model: nn.Module
    criterion: Compared
    learner: (
        nn.Module
    )  # model and criterion as one: images, targets, mean objects -> the loss, and its named parts
    task: Task
    settings: Settings
    run: RunFolder
    accelerator: Accelerator
    reporter: Reporter
    workers: int
    save_best: Callable[[nn.Module], None]
    stop_after: int | None = None  # steps, as if the machine went away then

    def __post_init__(self) -> None:
        self.model.to(self.accelerator.device)
        settings = self.settings
        ema = optim.running_mean(self.model, settings.ema) if settings.ema else None
        self.state = State(self.model, optim.optimizer(self.model, settings), ema, Progress())
        self.total = settings.total_steps(len(self.task.train))
        self.stopped = False  # somebody asked for it
        self.evaluated_at, self.evaluation_took, self.saved_at = 0.0, 1.0, time.monotonic()

    # the loop

    def train(self) -> Progress:
        """Train to the end, from wherever the state is."""
        progress, batches = self.state.progress, self.batches()
        network = self.parallel()
        self.model.train()
        while not self.finished():
            started = time.monotonic()
            self.seed_step()
            pieces = list(islice(batches, self.settings.accumulate))
            lr = optim.set_rates(self.state.optimizer, self.settings, progress.step, self.share())
            losses, norm = self.step(network, pieces)
            progress.step += 1
            progress.seconds += self.agreed(time.monotonic() - started)
            self.log(losses, norm, lr)
            if self.time_to_evaluate():
                self.evaluate(network)
                self.save()
            elif self.time_to_save():
                self.save()
        return progress

    def step(self, network: nn.Module, pieces: list[Batch]) -> tuple[dict[str, float], float]:
        """One optimizer step over all pieces of a batch: the named losses, and the norm of the gradient."""
        self.state.optimizer.zero_grad(set_to_none=True)
        mean_objects = self.mean_objects(pieces)
        sums: dict[str, Tensor] = {}
        for i, piece in enumerate(pieces):
            with self.synchronised(network, last=i + 1 == len(pieces)):
                loss, parts = self.compare(network, piece, mean_objects)
                loss.div(len(pieces)).backward()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part / len(pieces)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        values = self.on_host(sums, norm)
        if not all(map(math.isfinite, values.values())):
            raise self.diverged("the loss or its gradient is not finite", pieces)
        self.state.optimizer.step()
        if self.state.ema is not None:
            self.state.ema.update_parameters(self.model)
        return values, values.pop("norm")

    def compare(
        self, network: nn.Module, piece: Batch, mean_objects: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.accelerator.device
        targets = [target.to(device) for target in piece.targets]
        try:
            with self.accelerator.autocast():
                return network(piece.images(device), targets, mean_objects)
        except DivergedError as error:
            raise self.diverged(f"{error.what} ({error.where})", [piece]) from error

    # parts of a step

    def mean_objects(self, pieces: list[Batch]) -> Tensor:
        """Objects of a piece, averaged over the pieces of all processes: what normalises every loss of this step."""
        count = float(sum(len(target) for piece in pieces for target in piece.targets)) / len(
            pieces
        )
        return self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device), "mean")

    def on_host(self, sums: dict[str, Tensor], norm: Tensor) -> dict[str, float]:
        """Losses averaged over processes, and the norm, by one transfer."""
        stacked = self.accelerator.reduce(torch.stack(list(sums.values())), "mean")
        return dict(zip([*sums, "norm"], torch.cat([stacked, norm[None]]).tolist()))

    def synchronised(self, network: nn.Module, last: bool):  # type: ignore[no-untyped-def]
        """Processes exchange gradients once a step, with the last piece."""
        return torch.enable_grad() if last else self.accelerator.no_sync(network)

    def seed_step(self) -> None:
        """Dropout depends on (seed, step, process) alone, so a resumed run draws the same."""
        step, rank = self.state.progress.step, self.accelerator.process_index
        torch.manual_seed(hash((self.settings.seed, step, rank)) & 0x7FFFFFFFFFFFFFFF)

    def batches(self) -> Iterator[Batch]:
        start, stop = self.state.progress.step, self.total or FOREVER
        stream = Stream(len(self.task.train), self.settings.batch, self.settings.seed, start, stop)
        stream.rank, stream.ranks = self.accelerator.process_index, self.accelerator.num_processes
        stream.accumulate = self.settings.accumulate
        return iter(training_loader(self.task.train, stream, self.workers))

    def parallel(self) -> nn.Module:
        if self.settings.compile:
            self.model.compile_parts()  # type: ignore[operator]
            self.criterion.compile_parts()
        return self.accelerator.prepare_model(self.learner) if self.ranks > 1 else self.learner

    def diverged(self, what: str, pieces: list[Batch]) -> DivergedError:
        names = self.task.names([index for piece in pieces for index in piece.indices])
        return DivergedError(
            f"{what}, at step {self.state.progress.step + 1}",
            f"images: {', '.join(names)}",
            f"the last good checkpoint is {self.run.last}; lower --lr or --clip and resume, or look at these images",
        )

    # when what happens

    @property
    def ranks(self) -> int:
        return int(self.accelerator.num_processes)

    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self.total is not None:
            return self.state.progress.step / self.total
        passed = self.state.progress.seconds + self.state.progress.evaluation_seconds
        return passed / (60 * (self.settings.minutes or 1))

    def finished(self) -> bool:
        patience = self.settings.early_stop
        if self.stopped or self.state.progress.step == self.stop_after:
            return True
        return self.share() >= 1 or (patience is not None and self.state.progress.stale >= patience)

    def epoch(self, step: int | None = None) -> float:
        step = self.state.progress.step if step is None else step
        return step * self.settings.batch / len(self.task.train)

    def time_to_evaluate(self) -> bool:
        """Every ``eval_every`` epochs and at the end; against the clock, a twentieth of the time at most."""
        step = self.state.progress.step
        if self.share() >= 1:
            return True
        every = self.settings.eval_every
        due = self.epoch(step) // every > self.epoch(step - 1) // every
        if self.total is None:
            return (
                due and self.state.progress.seconds - self.evaluated_at > 20 * self.evaluation_took
            )
        return due

    def time_to_save(self) -> bool:
        """Every ``save_every`` steps, and never later than a few minutes after the last time."""
        every = self.settings.save_every
        due = every is not None and self.state.progress.step % every == 0
        return due or time.monotonic() - self.saved_at > SAVE_SECONDS

    def agreed(self, seconds: float) -> float:
        """The first process's clock, so that all stop at the same step."""
        if self.ranks == 1 or self.total is not None:
            return seconds
        value = torch.tensor(
            seconds if self.accelerator.is_main_process else 0.0, device=self.accelerator.device
        )
        return float(self.accelerator.reduce(value, "sum"))

    # what is written

    def log(self, losses: dict[str, float], norm: float, lr: float) -> None:
        progress = self.state.progress
        self.reporter.step(progress.step, self.total, self.share(), sum(losses.values()), lr)
        if self.accelerator.is_main_process and (progress.step % 10 == 0 or progress.step <= 10):
            total = sum(losses.values())
            record = {
                "step": progress.step,
                "epoch": round(self.epoch(), 4),
                "loss": total,
                "lr": lr,
                "norm": norm,
            }
            self.run.append({**record, "seconds": round(progress.seconds, 3), "losses": losses})

    def evaluate(self, network: nn.Module) -> None:
        """Figures of the val split, and how stable the matching is: logged, kept if the first figure is the best."""
        started, model, progress = time.monotonic(), self.state.evaluated, self.state.progress
        measured = self.settings.instability_images
        examination = Examination(model, self.criterion, self.task, self.accelerator, measured)
        found, matched = examination.run(self.piece_size(), self.workers, self.reporter.evaluating)
        result = self.task.evaluate(found)
        changes = examination.instability(matched, self.state.matched)
        self.state.matched = matched
        first = next(iter(result.stats.values()))
        score = 0.0 if math.isnan(first) else first
        better = score > progress.best_ap
        progress.best_ap, progress.stale = (
            (score, 0) if better else (progress.best_ap, progress.stale + 1)
        )
        self.evaluated_at, self.evaluation_took = (
            progress.seconds,
            self.agreed(time.monotonic() - started),
        )
        progress.evaluation_seconds += self.evaluation_took
        if self.accelerator.is_main_process:
            self.keep(result, changes, better)
        network.train()

    def keep(self, result: Evaluated, changes: dict[str, float], better: bool) -> None:
        progress = self.state.progress
        figures = {
            name: None if math.isnan(value) else value
            for name, value in (result.stats | changes).items()
        }
        record = {
            "step": progress.step,
            "epoch": round(self.epoch(), 4),
            "seconds": round(progress.seconds, 3),
        }
        self.run.append({**record, "peak_memory_mb": round(peak_memory_mb(), 1), **figures})
        self.run.write_results(self.run.records())
        if better or not self.run.best.is_file():
            self.save_best(self.state.evaluated)
            write_json(self.run.val / "metrics.json", {**record, **result.to_json()})
        shown = {name: result.stats[name] for name in self.task.figures}
        self.reporter.evaluated(self.epoch(), progress.seconds, shown, better)

    def save(self) -> None:
        self.saved_at = time.monotonic()
        if self.accelerator.is_main_process:
            self.state.save(self.run.last)

    def piece_size(self) -> int:
        return max(1, self.settings.batch // (self.settings.accumulate * self.ranks))
