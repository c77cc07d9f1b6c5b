"""Checkpoints of DAB-Deformable-DETR and DINO as their authors save them, and detrex's of DINO."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from groupdetr import Detector
from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout
from groupdetr.checkpoints.native import read, save, unique_state
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dino import DINO
from groupdetr.detectors.tiny import TinyDABDeformableDETR, TinyDINO, TinyTwoStageDABDeformableDETR
from groupdetr.errors import WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import recipe_from_dict
from groupdetr.structures.images import Images
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.detrex_dino import DETREX_DINO
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO

from .deformable import dab_deformable_state, detrex_state, dino_state

SMALL = {
    "num_classes": 5,
    "num_queries": 4,
    "channels": 32,
    "num_heads": 2,
    "dim_feedforward": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
}
DAB, DINO_TINY = TinyDABDeformableDETR(**SMALL), TinyDINO(**SMALL)  # type: ignore[arg-type]
DETREX = DINO(
    **{**SMALL, "num_classes": 80, "decoder_layers": 6},
    shared_heads=False,
    temperature=10000.0,
    offset=-0.5,  # type: ignore[arg-type]
)
ARGS = {"nheads": 2, "dropout": 0.0, "dataset_file": "coco", "num_queries": 4}
GROUPED = re.compile(r"queries\.(matching\.)?(embedding|anchors|heads\..*)")


@dataclass(frozen=True)
class Family:
    """A recipe, its checkpoint as one project saves it, and the layout of that project."""

    recipe: DABDeformableDETR
    state: Callable[[DetectionTransformer], dict[str, Tensor]]
    layout: Layout
    args: dict[str, object]
    tensors: int  # number in the published checkpoint
    full: DABDeformableDETR

    def write(self, path: Path, model: DetectionTransformer, **others: object) -> Path:
        return saved(path, self.state(model), **{**self.args, **others})


FAMILIES = {
    "dab": Family(
        DAB, dab_deformable_state, OFFICIAL_DAB_DEFORMABLE, ARGS, 604, DABDeformableDETR()
    ),
    "dino": Family(
        DINO_TINY,
        dino_state,
        OFFICIAL_DINO,
        {**ARGS, "pe_temperatureH": 20, "pe_temperatureW": 20},
        626,
        DINO(),
    ),
    "detrex": Family(
        DETREX,
        detrex_state,
        DETREX_DINO,
        {},
        634,
        replace(DINO(), num_classes=80, shared_heads=False),
    ),
}
TWO_STAGE = ["dino", "detrex"]


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def model(family: Family) -> DetectionTransformer:
    torch.manual_seed(0)
    return family.recipe.build()


def saved(path: Path, state: dict[str, Tensor], **args: object) -> Path:
    torch.save({"model": state, **({"args": Namespace(**args)} if args else {})}, path)
    return path


def same(a: DetectionTransformer, b: DetectionTransformer) -> bool:
    ours, theirs = unique_state(a), unique_state(b)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def predict_boxes(model: DetectionTransformer) -> Tensor:
    with torch.no_grad():
        return model.eval()(Images.from_list([image()])).final.boxes


def image() -> Tensor:
    return torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(0))


every = pytest.mark.parametrize("family", FAMILIES, indirect=True)
# names


@every
def test_their_checkpoint_fills_the_model(
    family: Family, model: DetectionTransformer, tmp_path: Path
) -> None:
    if family.layout is DETREX_DINO:  # their file does not have this row, and nothing uses it
        model.queries.labels.weight.data[-1] = 0.0  # type: ignore[union-attr, operator]
    torch.manual_seed(1)
    loaded = family.recipe.build()
    assert not same(loaded, model)
    report = load_weights(loaded, family.write(tmp_path / "checkpoint.pth", model))
    assert same(loaded, model)
    assert f"read as {family.layout.title}" in report.lines[0]
    assert len(report.lines) == 1


@every
def test_their_tensors_are_exactly_ours(family: Family) -> None:
    model = replace(
        family.full, num_queries=3, channels=32, num_heads=2, dim_feedforward=16
    ).build()
    theirs = family.state(model)
    assert len(theirs) == family.tensors
    assert (
        family.layout.convert(Checkpoint(theirs, {}, "test")).state.keys()
        == unique_state(model).keys()
    )


def test_different_heads_cannot_become_a_shared_head(tmp_path: Path) -> None:
    """Neither heads of the authors' file nor heads of a file of ours."""
    state = dino_state(DINO_TINY.build())
    path = saved(
        tmp_path / "x.pth", state | {"class_embed.1.bias": state["class_embed.1.bias"] + 1}, **ARGS
    )
    with pytest.raises(WeightsError, match=r"several of these, which differ: class_embed\.1\.bias"):
        load_weights(DINO_TINY.build(), path)
    separate = replace(DINO_TINY, shared_heads=False)
    save(separate.build(), tmp_path / "separate.safetensors", {})
    with pytest.raises(
        WeightsError,
        match=r"layers share these, which differ in the file: decoder\.heads\.1\.class",
    ):
        load_weights(DINO_TINY.build(), tmp_path / "separate.safetensors")
    load_weights(separate.build(), tmp_path / "separate.safetensors")


# groups and queries


@every
def test_a_baseline_is_group_0_and_other_groups_keep_their_initialisation(
    family: Family, model: DetectionTransformer, tmp_path: Path
) -> None:
    """Both query tables and proposal heads. Group 0 predicts what the baseline predicts."""
    torch.manual_seed(2)
    more = replace(family.recipe, num_groups=5).build()
    before = {
        name: value.clone() for name, value in more.state_dict().items() if GROUPED.fullmatch(name)
    }
    load_weights(more, family.write(tmp_path / "checkpoint.pth", model))
    ours, theirs = more.state_dict(), model.state_dict()
    assert len(before) == (2 if family.layout is OFFICIAL_DAB_DEFORMABLE else 13)
    for name in before:
        assert torch.equal(ours[name][:1], theirs[name])
        assert torch.equal(ours[name][1:], before[name][1:])
    assert torch.equal(predict_boxes(more), predict_boxes(model))


@pytest.mark.parametrize(
    "recipe",
    [DAB, DINO_TINY, TinyTwoStageDABDeformableDETR(**SMALL)],
    ids=["dab", "dino", "two-stage"],  # type: ignore[arg-type]
)
def test_eleven_groups_become_one(recipe: DABDeformableDETR, tmp_path: Path) -> None:
    torch.manual_seed(0)
    eleven, one = replace(recipe, num_groups=11).build(), recipe.build()
    save(eleven, tmp_path / "eleven.safetensors", {})
    report = load_weights(one, tmp_path / "eleven.safetensors")
    assert "groups: 11 in the file, 1 in the model: loaded the first 1" in report.lines
    assert torch.equal(predict_boxes(one), predict_boxes(eleven))


def test_query_rows_of_the_authors_are_group_after_group(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eleven, one = replace(DAB, num_groups=11).build(), DAB.build()
    load_weights(one, FAMILIES["dab"].write(tmp_path / "checkpoint.pth", eleven))
    assert torch.equal(predict_boxes(one), predict_boxes(eleven))


@every
def test_queries_are_fitted(family: Family, model: DetectionTransformer, tmp_path: Path) -> None:
    path = family.write(tmp_path / "checkpoint.pth", model)
    theirs = model.state_dict()
    for queries, n in ((2, 2), (7, 4)):
        other = replace(family.recipe, num_queries=queries, num_groups=2).build()
        report = load_weights(other, path, file_groups=1)
        assert any(line.startswith("queries of a group: 4 in the file") for line in report.lines)
        for name, value in other.state_dict().items():
            if re.fullmatch(r"queries\..*(embedding|anchors)", name):
                assert torch.equal(value[0, :n], theirs[name][0, :n])


# classes


@every
def test_class_rows_are_loaded_by_name(family: Family, tmp_path: Path) -> None:
    """In heads of all layers, in proposal heads of the file's groups and in the label embedding."""
    theirs = [name for _, name in family.layout.categories({"dataset_file": "coco"})]
    coco = replace(family.recipe, num_classes=len(theirs)).build()
    mine = replace(family.recipe, num_classes=3, num_groups=3).build()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    path = family.write(tmp_path / "coco.pth", coco)
    with pytest.raises(WeightsError, match=f"{len(theirs)} classes in the file, 3 in the model"):
        load_weights(mine, path)
    report = load_weights(mine, path, new_head=True, class_names=["zebra", "drone", "person"])
    assert "classes: 2 rows loaded by name, 1 newly initialised" in report.lines
    ours, old = mine.state_dict(), coco.state_dict()
    rows = [theirs.index("zebra"), theirs.index("person")]
    for name in [name for name in ours if re.search(r"heads(\.\d+)?\.classify", name)]:
        has_groups = name.startswith("queries.")
        loaded, file = (ours[name][0], old[name][0]) if has_groups else (ours[name], old[name])
        assert torch.equal(loaded[[0, 2]], file[rows])
        assert not any(torch.equal(loaded[1], row) for row in file) or name.endswith("bias")
        assert not has_groups or torch.equal(ours[name][1:], before[name][1:])
    if family.layout is not OFFICIAL_DAB_DEFORMABLE:
        labels, file = ours["queries.labels.weight"], old["queries.labels.weight"]
        last = torch.zeros(32) if family.layout is DETREX_DINO else file[-1]
        assert torch.equal(labels[[0, 2]], file[rows])
        assert torch.equal(labels[3], last)
        assert not any(torch.equal(labels[1], row) for row in file)


# recipe fields that no tensor shows


def test_the_position_embedding_of_the_layout_is_used(tmp_path: Path) -> None:
    """detrex's temperature and offset differ from the authors', and the file does not have them."""
    torch.manual_seed(0)
    theirs, ours = DETREX.build(), replace(DETREX, temperature=20.0, offset=0.0).build()
    report = load_weights(ours, saved(tmp_path / "x.pth", detrex_state(theirs)))
    assert report.lines[1:] == [
        "temperature: 10000 in the file, 20 in the model: set to 10000",
        "offset: -0.5 in the file, 0 in the model: set to -0.5",
    ]
    assert report.recipe_changes == {"temperature": 10000.0, "offset": -0.5}
    assert (ours.recipe.temperature, ours.recipe.offset) == (10000.0, -0.5)
    assert torch.equal(predict_boxes(ours), predict_boxes(theirs))


# imports


NOISE = {"dn_number": 50, "dn_label_noise_ratio": 0.25, "dn_box_noise_scale": 0.4}
NOISE_FIELDS = {"num_denoising": 50, "label_noise_ratio": 0.25, "box_noise_scale": 0.4}
ODD = {
    "num_queries": 3,
    "channels": 32,
    "num_heads": 2,
    "dim_feedforward": 16,
    "encoder_layers": 1,
    "num_levels": 5,
}


@pytest.mark.parametrize(
    ("name", "recipe", "args", "expected"),
    [
        (
            "dab",
            DABDeformableDETR(**ODD, decoder_layers=2, num_points=3),
            {},
            {"preset": "dab-deformable-detr-r50"},
        ),
        (
            "dab",
            DABDeformableDETR(**ODD, decoder_layers=3, num_groups=2),
            {},
            {"preset": "dab-deformable-detr-r50"},
        ),
        (
            "dino",
            DINO(**ODD, decoder_layers=2, num_points=2),
            NOISE,
            {"preset": "dino-4scale-r50", **NOISE_FIELDS},
        ),
    ],
)
def test_an_import_reads_the_recipe_from_the_file(
    name: str,
    recipe: DABDeformableDETR,
    args: dict[str, object],
    expected: dict[str, object],
    tmp_path: Path,
) -> None:
    path = FAMILIES[name].write(tmp_path / "checkpoint.pth", recipe.build(), num_queries=3, **args)
    import_weights(path, tmp_path / "out.safetensors")
    metadata = read(tmp_path / "out.safetensors")[1]
    assert recipe_from_dict(metadata["recipe"]) == recipe.with_options(**expected)
    assert metadata["categories"] == [[i, name] for i, name in enumerate(COCO_91)]


def test_an_import_of_two_stages_is_complete(tmp_path: Path) -> None:
    preset = "dab-deformable-detr-r50-two-stage"
    recipe = TwoStageDABDeformableDETR(**ODD, decoder_layers=2, num_groups=3, preset=preset)  # type: ignore[arg-type]
    metadata = {
        "recipe": asdict(recipe),
        "categories": [[i, name] for i, name in enumerate(COCO_91)],
    }
    save(recipe.build(), tmp_path / "best.safetensors", metadata)
    import_weights(tmp_path / "best.safetensors", tmp_path / "one.safetensors", num_groups=1)
    assert recipe_from_dict(read(tmp_path / "one.safetensors")[1]["recipe"]) == replace(
        recipe, num_groups=1
    )


def test_an_import_from_detrex_predicts_cocos_category_ids(tmp_path: Path) -> None:
    """The file is complete: heads for each layer, the position embedding, the 80 classes."""
    torch.manual_seed(0)
    theirs = DETREX.build()
    path = saved(tmp_path / "model_final.pth", detrex_state(theirs))
    import_weights(path, tmp_path / "out.safetensors", file_groups=1, num_heads=2)
    metadata = read(tmp_path / "out.safetensors")[1]
    recipe = recipe_from_dict(metadata["recipe"])
    assert recipe == replace(DETREX, preset="dino-4scale-r50")
    assert metadata["categories"][0] == [1, "person"]
    assert metadata["categories"][-1] == [90, "toothbrush"]
    assert len(metadata["categories"]) == 80
    again = recipe.build()
    load_weights(again, tmp_path / "out.safetensors")
    assert torch.equal(predict_boxes(again), predict_boxes(theirs))
    pixels = (image().permute(1, 2, 0).sigmoid() * 255).byte().numpy()
    (result,) = Detector(tmp_path / "out.safetensors", imgsz=64).predict(pixels, score=0.0)
    assert set(result.ids) <= {id for id, _ in metadata["categories"]}
    assert len(result.ids)


# wrong files


def test_weights_of_another_detector_are_refused(tmp_path: Path) -> None:
    path = FAMILIES["dino"].write(tmp_path / "dino.pth", DINO_TINY.build())
    with pytest.raises(WeightsError, match=r"the model has no .*queries\.labels\.weight"):
        load_weights(DAB.build(), path)
    path = FAMILIES["dab"].write(tmp_path / "dab.pth", DAB.build())
    with pytest.raises(
        WeightsError,
        match=r"the model has no decoder\.heads\.1|decoder\.position_embeddings\.1\.scale",
    ):
        load_weights(DINO_TINY.build(), path)
