"""Predictions and losses equal those of the published PETR and PETRv2.

The inputs are those of `tests.parity.petr`, and the weights are loaded from files of the authors'
layout. The numbers come from the published code on a CPU, in float32. Everything behind the neck is
compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.encoders.camera_encoder import ray_depths
from groupdetr.ops.position import sine_embedding, views_embedding
from groupdetr.structures.outputs import Outputs
from groupdetr.weights.loading import load_weights
from tests.weights.petr import petr_state

from . import petr

# Relative to the largest number. Attention is sharper with noise, which enlarges rounding errors.
TOLERANCE = {"sines": 1e-5, "noise": 2e-4}


@dataclass(frozen=True)
class Golden:
    """The published predictions and losses of a detector for one rule."""

    recipe: PETR
    frames: int
    rule: str
    means: tuple[float, float, float]  # of logits, of their absolute values, of encoded boxes
    last: tuple[list[float], list[float]]  # last layer: logits and box of query 0 in scene 0
    first: tuple[list[float], list[float]]  # first layer: those of query 899 in scene 1
    losses: list[list[float]]  # of classes and of boxes, for each layer


SINES_V1 = Golden(
    PETR(),
    1,
    "sines",
    (0.469177, 0.914041, 1.73549),
    (
        [
            -1.10976,
            -0.443631,
            0.314879,
            0.997577,
            1.4538,
            1.58354,
            1.35938,
            0.832358,
            0.120511,
            -0.617309,
        ],
        [
            19.5453,
            35.1163,
            0.728961,
            0.601354,
            2.12741,
            0.0246923,
            -0.295165,
            -0.542273,
            -0.663768,
            -0.635218,
        ],
    ),
    (
        [
            -1.38123,
            -0.423528,
            0.622157,
            1.52478,
            2.08552,
            2.18151,
            1.79273,
            1.00623,
            -0.00315796,
            -1.01145,
        ],
        [
            -30.7196,
            -12.2108,
            0.613083,
            0.446061,
            -1.48292,
            -0.106273,
            -0.367711,
            -0.540522,
            -0.588103,
            -0.5022,
        ],
    ),
    [
        [5141.474, 4.489454],
        [3813.572, 4.440005],
        [2761.775, 4.326737],
        [3275.831, 4.294752],
        [3811.486, 4.283175],
        [3539.311, 4.240496],
    ],
)
SINES_V2 = Golden(
    PETRv2(),
    2,
    "sines",
    (0.0950866, 1.08382, -0.170848),
    (
        [
            0.656645,
            0.798357,
            0.771734,
            0.584107,
            0.276977,
            -0.0831293,
            -0.419123,
            -0.659995,
            -0.756014,
            -0.689208,
        ],
        [
            5.09668,
            14.7622,
            0.11535,
            0.673444,
            2.35778,
            0.545276,
            -0.681984,
            -0.795952,
            1.23953,
            1.24214,
        ],
    ),
    (
        [
            -1.38144,
            -0.42366,
            0.622131,
            1.52486,
            2.0857,
            2.18174,
            1.79296,
            1.00641,
            -0.00306097,
            -1.01146,
        ],
        [
            -29.5845,
            -12.5935,
            0.563605,
            0.0327025,
            -2.28402,
            -0.455798,
            0.380898,
            0.440107,
            0.822067,
            0.95054,
        ],
    ),
    [
        [5141.577, 5.313939],
        [1542.929, 4.826535],
        [6812.43, 4.812908],
        [1123.864, 5.994245],
        [3753.994, 4.798716],
        [1767.64, 6.381351],
    ],
)
NOISE_V1 = Golden(
    PETR(),
    1,
    "noise",
    (-0.543147, 0.935706, -2.02558),
    (
        [
            -1.37159,
            0.92739,
            -1.25351,
            0.151038,
            0.770255,
            -0.844943,
            -1.30797,
            -1.60959,
            -0.488785,
            0.634038,
        ],
        [
            -27.0,
            -24.1318,
            0.614315,
            -0.0830729,
            1.2371,
            0.373156,
            -0.609001,
            1.30056,
            -1.37076,
            0.956363,
        ],
    ),
    (
        [
            -1.83622,
            -1.21608,
            -1.28889,
            0.30509,
            0.491446,
            -2.00673,
            -0.848883,
            -0.448001,
            -0.205173,
            1.40905,
        ],
        [
            51.1986,
            -7.03031,
            1.04492,
            0.995226,
            -4.16406,
            1.0348,
            -0.411545,
            1.18236,
            -0.497089,
            4.10594,
        ],
    ),
    [
        [1627.435, 3.259741],
        [1080.948, 3.440669],
        [1568.975, 3.328321],
        [996.6241, 3.661349],
        [846.2138, 3.380451],
        [1281.751, 2.924235],
    ],
)
NOISE_V2 = Golden(
    PETRv2(),
    2,
    "noise",
    (0.0564138, 0.828, -0.554291),
    (
        [
            -0.00293964,
            -0.460995,
            0.326744,
            0.403723,
            -0.679107,
            0.264967,
            -0.960625,
            0.952257,
            -0.889499,
            1.0219,
        ],
        [
            -17.2437,
            -14.8367,
            -0.130611,
            -0.954328,
            -0.279352,
            -0.0545916,
            -1.62277,
            0.865965,
            2.72049,
            0.529195,
        ],
    ),
    (
        [
            -2.20482,
            -1.27823,
            -1.05574,
            -0.639095,
            1.14535,
            -1.12964,
            -0.432424,
            0.556196,
            -1.47494,
            2.09642,
        ],
        [
            51.1983,
            49.7145,
            0.647185,
            1.2127,
            -4.7412,
            0.104399,
            1.27942,
            2.18359,
            -0.271193,
            1.26051,
        ],
    ),
    [
        [2254.833, 4.308486],
        [1945.91, 4.295709],
        [3360.817, 3.868448],
        [2693.347, 2.907114],
        [2862.407, 4.211529],
        [2115.312, 3.240456],
    ],
)
ALL = {
    "petr-sines": SINES_V1,
    "petrv2-sines": SINES_V2,
    "petr-noise": NOISE_V1,
    "petrv2-noise": NOISE_V2,
}


# Each detector and each rule once; the other two are for `-m slow`.
IN_CI = ("petrv2-sines", "petr-noise")
CASES = [
    pytest.param(golden, id=name, marks=() if name in IN_CI else pytest.mark.slow)
    for name, golden in ALL.items()
]


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return request.param


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DetectionTransformer:
    model = golden.recipe.build()
    state = {
        name: petr.weight(shared_name(name, golden), x.shape, golden.rule)
        for name, x in petr_state(model).items()
    }
    path = tmp_path_factory.mktemp("golden") / "petr.pth"
    torch.save({"meta": {"mmcv_version": "1.4.0"}, "state_dict": state}, path)
    load_weights(model, path)
    return model.eval()


def shared_name(name: str, golden: Golden) -> str:
    """Return the name of the weight that a weight equals. PETR's heads equal the first."""
    if isinstance(golden.recipe, PETRv2):
        return name
    return re.sub(r"_branches\.\d", "_branches.0", name)


@pytest.fixture(scope="module")
def outputs(golden: Golden, model: DetectionTransformer) -> Outputs:
    encoder, images = model.encoder, petr.images(golden.frames)
    with torch.no_grad():
        projected = encoder.projection(petr.features(golden.frames, golden.rule))
        memory = encoder.encode(projected, images.image_to_lidar, images.elapsed)
        queries = model.queries(memory, None)
        return Outputs(model.decoder(queries, memory), queries)


def is_close(values: Tensor, golden_values: list[float], rule: str = "sines") -> bool:
    expected = torch.tensor(golden_values)
    return bool((values - expected).abs().max() < TOLERANCE[rule] * expected.abs().max())


def test_predictions_are_theirs(golden: Golden, outputs: Outputs) -> None:
    logits = torch.stack([layer.logits for layer in outputs.layers])
    boxes = torch.stack([layer.boxes for layer in outputs.layers])
    for values, expected in zip((logits, logits.abs(), boxes), golden.means):
        assert values.mean().item() == pytest.approx(expected, rel=TOLERANCE[golden.rule])
    for values, last, first in zip((logits, boxes), golden.last, golden.first):
        assert is_close(values[-1, 0, 0, 0], last, golden.rule)
        assert is_close(values[0, 1, 0, 899], first, golden.rule)


def test_losses_of_every_layer_are_theirs(golden: Golden, outputs: Outputs) -> None:
    """The matching is theirs, too: with other costs, other pairs would have other losses."""
    losses = golden.recipe.criterion()(outputs, petr.targets())
    assert len(losses) == 2 * len(golden.losses)
    for i, (focal, l1) in enumerate(golden.losses):
        assert losses[f"layer{i}/focal"].item() == pytest.approx(focal, rel=TOLERANCE[golden.rule])
        assert losses[f"layer{i}/l1"].item() == pytest.approx(l1, rel=TOLERANCE[golden.rule])


def test_points_on_rays_are_theirs(model: DetectionTransformer) -> None:
    expected_depths = [1.0, 1.028942, 1.086827, 1.173654, 59.34769]
    assert is_close(ray_depths()[[0, 1, 2, 3, -1]], expected_depths)
    points = model.encoder.frustum_points(petr.images(1).image_to_lidar, *petr.MAP)
    expected = torch.tensor([0.06147819, 0.08812997, -0.06001804])
    assert (points[0, 1, 2, 3, 30:33] - expected).abs().max() < 1e-5


def test_position_embeddings_are_theirs() -> None:
    sine = sine_embedding(torch.tensor([0.25, 0.5, 0.75]), 128)
    point = sine.view(3, 128)[:, :4].flatten()
    y = [0, -1, 0.4087512, -0.9126459]
    x = [1, 0, 0.9779177, 0.2089906]
    z = [-1, 0, -0.8070673, -0.5904595]
    assert (point - torch.tensor([*y, *x, *z])).abs().max() < 1e-6

    views = views_embedding((6, *petr.MAP), 128, torch.device("cpu"))
    token = views[1, 2, 3].view(3, 128)[:, :4].flatten()
    view = [0.8660255, 0.9706506, 1.0, 0.9778775]
    row = [-1, -0.8070667, -0.3822219, 0.08136439]
    column = [0.5877854, 0.8221554, 0.9511387, 0.9981231]
    assert (token - torch.tensor([*view, *row, *column])).abs().max() < 1e-6
