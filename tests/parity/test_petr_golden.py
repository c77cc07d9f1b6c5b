"""The published PETR's and PETRv2's answers to what `tests.parity.petr` asks, by way of files of their layout.

The numbers come from the published code on a CPU, in float32. What follows the neck's map is compared. With these
weights keys and positions of tokens hardly show in the answers: `tests.test_cameras` and
`tests.attention.test_dense_attention` hold them to formulas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from groupdetr.detector import DetectionTransformer
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.encoders.camera import depths
from groupdetr.ops.position import sine_embedding, views_embedding
from groupdetr.outputs import Outputs
from groupdetr.weights import load_weights
from tests.weights.petr import petr_state

from . import petr

TOLERANCE = 1e-5  # of the largest number


@dataclass(frozen=True)
class Golden:
    """Of a detector with its moments: means, queries of the last and the first layer, losses of all six."""

    recipe: PETR
    moments: int
    means: tuple[float, float, float]  # of logits, of their absolute values, and of codes
    last: tuple[list[float], list[float]]  # logits and code of query 0 in scene 0
    first: tuple[list[float], list[float]]  # and of query 899 in scene 1
    losses: list[list[float]]  # of class and of box


V1 = Golden(
    PETR(),
    1,
    (0.469178, 0.914043, 1.73549),
    (
        [-1.10976, -0.443632, 0.314878, 0.997577, 1.4538, 1.58354, 1.35938, 0.832359, 0.120511, -0.617309],
        [19.5453, 35.1163, 0.728961, 0.601354, 2.12741, 0.0246923, -0.295165, -0.542272, -0.663768, -0.635218],
    ),
    (
        [-1.38123, -0.42353, 0.622159, 1.52478, 2.08553, 2.18152, 1.79273, 1.00623, -0.00315752, -1.01145],
        [-30.7196, -12.2108, 0.613083, 0.446061, -1.48292, -0.106273, -0.367711, -0.540522, -0.588103, -0.502201],
    ),
    [
        [5141.485, 4.48946], [3813.612, 4.44001], [2761.779, 4.32674], [3275.821, 4.29475], [3811.481, 4.28317],
        [3539.311, 4.2405],
    ],
)  # fmt: skip
V2 = Golden(
    PETRv2(),
    2,
    (0.0950867, 1.08382, -0.170848),
    (
        [0.656645, 0.798358, 0.771734, 0.584107, 0.276977, -0.0831292, -0.419123, -0.659995, -0.756014, -0.689208],
        [5.09668, 14.7622, 0.11535, 0.673444, 2.35778, 0.545276, -0.681984, -0.795952, 1.23953, 1.24213],
    ),
    (
        [-1.38144, -0.423661, 0.622131, 1.52486, 2.0857, 2.18175, 1.79297, 1.00641, -0.0030601, -1.01146],
        [-29.5846, -12.5935, 0.563605, 0.0327025, -2.28402, -0.455798, 0.380898, 0.440107, 0.822067, 0.95054],
    ),
    [
        [5141.583, 5.31394], [1542.929, 4.82653], [6812.428, 4.81291], [1123.864, 5.99425], [3753.995, 4.79871],
        [1767.64, 6.38135],
    ],
)  # fmt: skip


@pytest.fixture(scope="module", params=[pytest.param(V1, id="petr"), pytest.param(V2, id="petrv2")])
def golden(request: pytest.FixtureRequest) -> Golden:
    return request.param


@pytest.fixture(scope="module")
def model(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> DetectionTransformer:
    model = golden.recipe.build()
    state = {name: petr.weight(shared(name, golden), x.shape) for name, x in petr_state(model).items()}
    path = tmp_path_factory.mktemp("golden") / "petr.pth"
    torch.save({"meta": {"mmcv_version": "1.4.0"}, "state_dict": state}, path)
    load_weights(model, path)
    return model.eval()


def shared(name: str, golden: Golden) -> str:
    """Heads of PETR are six copies of the first."""
    return name if isinstance(golden.recipe, PETRv2) else re.sub(r"_branches\.\d", "_branches.0", name)


@pytest.fixture(scope="module")
def outputs(golden: Golden, model: DetectionTransformer) -> Outputs:
    encoder, images = model.encoder, petr.images(golden.moments)
    with torch.no_grad():
        memory = encoder.encode(encoder.projection(petr.features(golden.moments)), *images.beside)
        queries = model.queries(memory, None)
        return Outputs(model.decoder(queries, memory), queries)


def close(found: Tensor, meant: list[float]) -> bool:
    expected = torch.tensor(meant)
    return bool((found - expected).abs().max() < TOLERANCE * expected.abs().max())


def test_what_queries_say_is_theirs(golden: Golden, outputs: Outputs) -> None:
    logits, codes = (torch.stack([getattr(layer, part) for layer in outputs.layers]) for part in ("logits", "boxes"))
    for found, meant in zip((logits, logits.abs(), codes), golden.means):
        assert found.mean().item() == pytest.approx(meant, rel=TOLERANCE)
    for found, last, first in zip((logits, codes), golden.last, golden.first):
        assert close(found[-1, 0, 0, 0], last)
        assert close(found[0, 1, 0, 899], first)


def test_losses_of_every_layer_are_theirs(golden: Golden, outputs: Outputs) -> None:
    """Matched as they match: with other costs pairs differ, and so do losses."""
    losses = golden.recipe.criterion()(outputs, petr.targets())
    assert len(losses) == 2 * len(golden.losses)
    for i, (focal, l1) in enumerate(golden.losses):
        assert losses[f"layer{i}/focal"].item() == pytest.approx(focal, rel=TOLERANCE)
        assert losses[f"layer{i}/l1"].item() == pytest.approx(l1, rel=TOLERANCE)


def test_points_on_rays_are_theirs(model: DetectionTransformer) -> None:
    assert close(depths()[[0, 1, 2, 3, -1]], [1.0, 1.028942, 1.086827, 1.173654, 59.34769])
    points = model.encoder.along_rays(petr.images(1).image_to_lidar, *petr.MAP)
    assert (points[0, 1, 2, 3, 30:33] - torch.tensor([0.06147819, 0.08812997, -0.06001804])).abs().max() < 1e-5


def test_position_embeddings_are_theirs() -> None:
    point = sine_embedding(torch.tensor([0.25, 0.5, 0.75]), 128).view(3, 128)[:, :4].flatten()
    y, x, z = [0, -1, 0.4087512, -0.9126459], [1, 0, 0.9779177, 0.2089906], [-1, 0, -0.8070673, -0.5904595]
    assert (point - torch.tensor([*y, *x, *z])).abs().max() < 1e-6
    token = views_embedding((6, *petr.MAP), 128, torch.device("cpu"))[1, 2, 3].view(3, 128)[:, :4].flatten()
    view, row = [0.8660255, -0.4999999, 0.9706506, -0.2404943], [-1, -9.417494e-7, -0.8070667, -0.5904602]
    column = [0.5877854, -0.8090169, 0.8221554, -0.5692632]
    assert (token - torch.tensor([*view, *row, *column])).abs().max() < 1e-6
