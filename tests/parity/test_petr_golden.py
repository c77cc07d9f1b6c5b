"""The published PETR's and PETRv2's answers to what `tests.parity.petr` asks, by way of files of their layout.

The numbers come from the published code on a CPU, in float32. The rest of the model follows the neck's map.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

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
    (0.469178, 0.9140428, 1.735492),
    (
        [-1.109758, -0.4436321, 0.3148784, 0.9975774, 1.453796, 1.583536, 1.359381, 0.8323585, 0.1205112, -0.6173085],
        [19.54532, 35.11625, 0.7289611, 0.6013541, 2.127406, 0.02469234, -0.2951646, -0.5422724, -0.6637678, -0.6352181],
    ),
    (
        [-1.381234, -0.4235297, 0.6221591, 1.524779, 2.085526, 2.181521, 1.792735, 1.00623, -0.00315752, -1.011449],
        [-30.71957, -12.21082, 0.6130832, 0.4460608, -1.482919, -0.1062729, -0.3677114, -0.5405219, -0.588103, -0.5022005],
    ),
    [
        [5141.485, 4.489456], [3813.612, 4.440006], [2761.779, 4.326735], [3275.821, 4.29475], [3811.481, 4.283174],
        [3539.311, 4.240498],
    ],
)  # fmt: skip
V2 = Golden(
    PETRv2(),
    2,
    (0.09508673, 1.083818, -0.1708478),
    (
        [0.6566455, 0.7983576, 0.7717345, 0.5841073, 0.2769769, -0.08312923, -0.419123, -0.6599951, -0.7560143, -0.6892082],
        [5.09668, 14.76217, 0.1153503, 0.673444, 2.35778, 0.5452758, -0.6819839, -0.7959517, 1.239529, 1.242135],
    ),
    (
        [-1.38144, -0.4236611, 0.6221315, 1.524861, 2.085699, 2.181748, 1.792966, 1.006414, -0.003060102, -1.011459],
        [-29.58455, -12.59347, 0.5636048, 0.03270248, -2.284024, -0.4557979, 0.3808983, 0.4401069, 0.8220672, 0.9505403],
    ),
    [
        [5141.583, 5.313938], [1542.929, 4.826535], [6812.428, 4.812908], [1123.864, 5.994245], [3753.995, 4.798715],
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
