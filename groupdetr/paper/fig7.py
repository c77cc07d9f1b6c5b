"""Fig. 7: the memory of training with naive and with efficient attention."""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.analysis.training_memory import MemoryStep, step_memory
from groupdetr.console.progress import CountProgress
from groupdetr.engine.accelerator import environment
from groupdetr.experiments.recipes import K
from groupdetr.paper import small_scale
from groupdetr.paper.item import Choices, Item
from groupdetr.paper.plan import Plan
from groupdetr.paper.results import Results, markdown
from groupdetr.paper.scale import Detector, Scale
from groupdetr.registry import experiment
from groupdetr.report.page import Cell, Column, Html, Tile, prose, section, table, tiles

MODEL = "conditional-detr-r50"
BATCH = 2  # images of one GPU in the paper's trainings
HEIGHT, WIDTH = 800, 1333
ROWS = ((1, True), (1, False), (0, True), (0, False))  # K (0: with groups), naive attention


class Fig7(Item):
    name = "fig7"
    title = "Fig. 7: the memory of training"
    shows = "How much memory do groups need, with naive and with efficient attention?"
    source = (
        "The paper has +1.2 GB for Conditional DETR and +1.7 GB for DAB-DETR with eleven groups "
        "and efficient attention, on a GPU."
    )

    most_models = None
    own_seconds = 210.0  # measured on a busy machine

    def detectors(self, scale: Scale) -> list[Detector]:
        return []

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        return Plan([])

    def collect(self, scale: Scale, choices: Choices) -> Results:
        """Measure single steps on noise. No training is needed."""
        steps = []
        for model in scale.models or (MODEL,):
            small = small_scale.small_detector(model)
            own = experiment(model).recipe
            groups = max(choices.groups, default=scale.groups or max(own.num_groups, 2))
            for count, naive in ROWS:
                steps.append(
                    MemoryStep(
                        model=model,
                        groups=count or groups,
                        naive=naive,
                        batch=BATCH if small is None else small.settings.batch,
                        height=HEIGHT if small is None else small.settings.imgsz,
                        width=WIDTH if small is None else small.settings.imgsz,
                        queries=scale.queries or (None if small is None else small.queries),
                    )
                )
        rows = []
        with CountProgress("memory", "training steps") as progress:
            for done, step in enumerate(steps, 1):
                measured = step_memory(step)
                rows.append(
                    {
                        "model": step.model,
                        "groups": step.groups,
                        "attention": "naive" if step.naive else "efficient",
                        "images": f"{step.batch} of {step.height} x {step.width}",
                        "kept": round(measured.kept, 1),
                        "peak": None if measured.peak is None else round(measured.peak, 1),
                    }
                )
                progress(done, len(steps))
        return Results(
            item=self.name,
            scale="on a CPU, one training step on images of noise",
            metric="memory",
            metrics=["memory"],
            environment=environment(),
            protocol={"Groups of the paper": K},
            extra={"memory": rows},
        )

    def body(self, results: Results, _images: Sequence[Html]) -> list[Html]:
        rows = results.extra["memory"]
        items, texts = [], []
        for model in dict.fromkeys(row["model"] for row in rows):
            measured = {
                (row["groups"] > 1, row["attention"]): row for row in rows if row["model"] == model
            }
            base, grouped = measured[False, "efficient"], measured[True, "efficient"]
            naive = measured[True, "naive"]
            extra = grouped["kept"] - base["kept"]
            naive_extra = naive["kept"] - measured[False, "naive"]["kept"]
            label = f"{model}: kept for K = {grouped['groups']} over K = 1"
            note = f"{naive_extra:,.0f} MiB with naive attention"
            items.append(Tile(label, f"{extra:+,.0f}", "MiB", note, strong=True))
            texts.append(
                f"{model}: with efficient attention, the groups add {extra:,.0f} MiB to the "
                f"{base['kept']:,.0f} MiB that autograd keeps with one group; with naive attention "
                f"they add {naive_extra:,.0f} MiB."
            )
        columns = [Column("model"), Column("K", 0), Column("attention"), Column("images")]
        columns += [Column("kept, MiB", 0), Column("peak, MiB", 0)]
        cells: list[list[Cell]] = [
            [row[name] for name in ("model", "groups", "attention", "images", "kept", "peak")]
            for row in rows
        ]
        text = (
            "Naive attention stores the weights of every query and token for the backward pass; "
            "efficient attention computes them again. The detector has no dropout here, because on "
            "a CPU torch has no efficient attention with it. Kept is what autograd holds for the "
            "backward pass, parameters left out, which does not depend on the machine. Peak is the "
            "memory that the step adds to a process, temporary tensors of the kernels included."
        )
        return [
            tiles(items),
            section("Memory of a step", prose(text, *texts, self.source), table(columns, cells)),
        ]

    def table(self, results: Results) -> str:
        names = ["model", "K", "attention", "images", "kept, MiB", "peak, MiB"]
        rows = []
        for row in results.extra["memory"]:
            peak = "–" if row["peak"] is None else f"{row['peak']:.0f}"
            first = [row["model"], str(row["groups"]), row["attention"], row["images"]]
            rows.append([*first, f"{row['kept']:.0f}", peak])
        return markdown(names, rows)
