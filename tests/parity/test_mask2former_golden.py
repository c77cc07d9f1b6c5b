"""Predictions equal those of the published Mask2Former for weights and feature maps by rule.

The weights are loaded from a file of the authors' layout. The numbers come from the published code
on a CPU, in float32.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.detections import decode_mask
from groupdetr.structures.images import Images
from groupdetr.structures.memory import PixelMemory
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.instance_segmentation import postprocess_masks
from groupdetr.weights.loading import load_weights
from tests.weights.mask2former import mask2former_state, write_pickle

TOLERANCE = 1e-4  # relative to the largest number; mask logits are in the hundreds
IMAGE_SIZE = (96, 128)  # height and width of the two images, in pixels
STEPS = {4: 0.011, 8: 0.012, 16: 0.013, 32: 0.014}  # of the sines in feature maps, by stride

# Last layer: (image, query) -> logits of the first 8 of 81 classes.
LOGITS = {
    (0, 0): [
        -2.3157773,
        -2.1609962,
        -1.5414561,
        -0.5927042,
        0.4787672,
        1.4405508,
        2.0849116,
        2.2738779,
    ],
    (1, 99): [
        -2.4064193,
        -2.2555850,
        -1.6192907,
        -0.6367458,
        0.4781568,
        1.4835062,
        2.1620302,
        2.3682802,
    ],
}
MASK = [
    33.6831627,
    30.2651596,
    31.1975899,
    31.5981827,
    30.8039932,
    29.3686142,
    28.3845882,
    27.7745056,
]
FIRST_LOGITS = [
    -6.6031904,
    -12.6151648,
    -15.8741837,
    -15.6668568,
    -12.0373983,
    -5.7780962,
    1.7437885,
    8.8849440,
]
FIRST_MASK = [
    133.2117310,
    158.9189911,
    160.9248505,
    158.5979309,
    149.9676056,
    142.0637054,
    141.5667267,
    144.3092346,
]
SCORES = [0.0476665, 0.0476651, 0.0476414, 0.0476286, 0.0476254]
AREAS = [24727, 24731, 24738, 24737, 24740]
PIXELS = [
    -0.2556983,
    -0.2132390,
    -0.2215441,
    -0.2322499,
    -0.2339959,
    -0.2254622,
    -0.2170838,
    -0.2062646,
]


def weight(name: str, like: Tensor) -> Tensor:
    """Return a weight of sines that follow from its name.

    Norms are near one and biases small. The wider a matrix, the smaller its values.
    """
    steps = torch.arange(like.numel(), dtype=torch.float64)
    seed = zlib.crc32(name.removeprefix("sem_seg_head.").encode())
    sines = torch.sin(0.37 * steps + seed % 1000)
    if like.ndim > 1:
        sines *= 1.5 / math.sqrt(like.numel() / len(like))
    else:
        sines = 0.1 * sines + name.endswith("weight")
    return sines.float().reshape(like.shape)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DetectionTransformer:
    model = Mask2Former().build()
    state = {name: weight(name, value) for name, value in mask2former_state(model).items()}
    load_weights(model, write_pickle(tmp_path_factory.mktemp("golden") / "model_final.pkl", state))
    return model.eval()


@pytest.fixture(scope="module")
def memory(model: DetectionTransformer) -> PixelMemory:
    maps = []
    for (stride, step), channels in zip(STEPS.items(), (256, 512, 1024, 2048)):
        shape = (2, channels, IMAGE_SIZE[0] // stride, IMAGE_SIZE[1] // stride)
        sines = torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64))
        maps.append(sines.float().reshape(shape))
    with torch.no_grad():
        images = Images(
            torch.zeros(2, 3, *IMAGE_SIZE),
            torch.zeros(2, *IMAGE_SIZE, dtype=torch.bool),
            padded=False,
        )
        return model.encoder(maps, images)


@pytest.fixture(scope="module")
def predictions(model: DetectionTransformer, memory: PixelMemory) -> list[Predictions]:
    """The predictions before the first layer and after each of the nine layers."""
    with torch.no_grad():
        return model.decoder(model.queries(memory, None), memory)


def is_close(values: Tensor, golden_values: list[float]) -> bool:
    expected = torch.tensor(golden_values)
    return bool((values - expected).abs().max() < TOLERANCE * expected.abs().max())


def test_mask_features_are_theirs(memory: PixelMemory) -> None:
    assert memory.shapes == ((3, 4), (6, 8), (12, 16))
    assert is_close(memory.mask_features.pixels[0, 0, 0, :8], PIXELS)


def test_predictions_before_the_first_layer_are_theirs(predictions: list[Predictions]) -> None:
    assert is_close(predictions[0].logits[0, 0, 0, :8], FIRST_LOGITS)
    assert is_close(predictions[0].masks.full()[1, 0, 5, 3, :8], FIRST_MASK)


def test_predictions_after_nine_layers_are_theirs(predictions: list[Predictions]) -> None:
    assert len(predictions) == 10
    last = predictions[-1]
    for (image, query), expected in LOGITS.items():
        assert is_close(last.logits[image, 0, query, :8], expected)
    masks = last.masks.full()
    assert is_close(masks[0, 0, 0, 0, :8], MASK)
    assert masks.abs().mean().item() == pytest.approx(17.7007446, rel=TOLERANCE)
    assert last.logits.abs().mean().item() == pytest.approx(1.4642650, rel=TOLERANCE)


def test_the_best_instances_are_theirs(model: DetectionTransformer, memory: PixelMemory) -> None:
    """For an image of 90 x 120 pixels without its padding, whose original has 180 x 240.

    Areas may differ by a few pixels, whose logit is zero up to rounding.
    """
    mask_features = replace(memory.mask_features, sizes=torch.tensor([[90, 120], [96, 128]]))
    with torch.no_grad():
        smaller = replace(memory, mask_features=mask_features)
        queries = model.queries(smaller, None)
        final = Outputs(model.decoder(queries, smaller), queries).final
    detections, _ = postprocess_masks(final, [(240, 180), (256, 192)], num_detections=100)
    assert detections.labels[:5].tolist() == [60] * 5
    assert detections.scores[:5].tolist() == pytest.approx(SCORES, rel=1e-4)
    assert detections.masks is not None
    assert [decode_mask(mask).sum() for mask in detections.masks[:5]] == pytest.approx(AREAS, abs=2)
