"""The demo of detectors of scenes: what it draws and trains on, and what its page shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from groupdetr.analysis.matched_queries import matched
from groupdetr.data.nuscenes.dataset import Views, collate
from groupdetr.data.nuscenes.synthetic import write
from groupdetr.evaluation.nuscenes import ERRORS, FIGURES
from groupdetr.experiments import DEMO_SCENES, DEMO_SCENES_DATA
from groupdetr.modeling.heads import HIGH, LOW
from groupdetr.ops.boxes3d import code_to_box
from groupdetr.report.demo import Subject
from groupdetr.report.page import Html, Picture, gallery, prose, section, wide
from groupdetr.report.panels import group_legend
from groupdetr.tasks.demo_spec import Exhibit
from groupdetr.tasks.detection3d.prediction import SceneDetector, spread
from groupdetr.visualize.scenes import draw_groups_from_above

SCENES, GROUP_SCENES = 2, 3  # on the page
WIDTH = 480  # pixels of a camera's picture there
SOME = 5  # objects of a scene, of which every group's query is drawn


def draw(folder: Path) -> None:
    write(DEMO_SCENES_DATA, folder)


def subject(kind: str) -> Subject:
    del kind
    caption = (
        "The detection score of nuScenes and mAP on the validation samples, in points, and the mean errors of boxes "
        "that are within two metres of an object, after the last epoch."
    )
    return Subject(
        "drawn scenes of six cameras", FIGURES[:2], caption, [f"m{name}" for name in ERRORS]
    )


def sections(data: Path, runs: Mapping[str, Path]) -> list[Html]:
    """What each run finds, and what every group of the last one does."""
    detectors = {name: SceneDetector(run, "cpu") for name, run in runs.items()}
    *_, grouped = detectors.values()
    return [what_they_find(data, detectors), queries_of_every_group(grouped, grouped.samples(data))]


def what_they_find(data: Path, detectors: Mapping[str, SceneDetector]) -> Html:
    words = (
        "Samples that no run was trained on. Of each detector as many boxes are drawn as there are objects (white), "
        "the surest first: a common score threshold would favour whichever is the more confident."
    )
    results = {
        name: each.predict(data, score=0.0, limit=SCENES) for name, each in detectors.items()
    }
    rows = [(name, found) for same in zip(*results.values()) for name, found in zip(results, same)]
    pictures = [
        Picture(
            found.best(len(found.truth)).draw(WIDTH),
            name,
            f"{len(found.truth)} objects, {found.sample.scene}",
        )
        for name, found in rows
    ]
    return section("What they find", prose(words), wide(pictures))


def queries_of_every_group(detector: SceneDetector, samples: Views) -> Html:
    words = (
        "From above, the box that each group's query says of some objects (white), and a dot where that query looks. "
        "As in the paper's Fig. 3, the groups look at the same thing from different places, like augmentations of one "
        "query."
    )
    legend = group_legend(detector.recipe.num_groups)
    return section(
        "One object, a query of every group",
        prose(words),
        legend,
        gallery([*of_groups(detector, samples)]),
    )


def of_groups(detector: SceneDetector, samples: Views) -> Iterator[Picture]:
    for index in spread(len(samples), GROUP_SCENES):
        batch = collate([samples[index]])
        found, objects = (
            matched(detector.model, detector.recipe.criterion(), batch),
            batch.targets[0].boxes,
        )
        low = found.reference.new_tensor(LOW)
        points = found.reference * (found.reference.new_tensor(HIGH) - low) + low
        said, places = (
            found.by_object(x, len(objects)) for x in (code_to_box(found.said.boxes), points)
        )
        some = spread(len(objects), SOME)
        yield Picture(
            draw_groups_from_above(objects[some], said[some], places[some]),
            samples.samples[index].scene,
        )


EXHIBIT = Exhibit(
    draw,
    DEMO_SCENES_DATA.train_scenes * DEMO_SCENES_DATA.samples,
    DEMO_SCENES_DATA,
    f"{DEMO_SCENES_DATA.train_scenes} training and {DEMO_SCENES_DATA.val_scenes} validation scenes of six cameras",
    DEMO_SCENES,
    subject,
    sections,
)
