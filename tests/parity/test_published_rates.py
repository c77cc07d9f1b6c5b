"""Learning rates and weight decay of LW-DETR and RF-DETR, by the names of the published weights.

The rules are those of the functions that the authors' scripts and the package rfdetr 1.11.2 call
for every name. The names and shapes are those of the golden values.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from groupdetr.detectors.lw_detr import LW_DETR_TINY
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.rf_detr import RF_DETR_NANO
from groupdetr.engine.optimizer import create_optimizer, set_learning_rates
from groupdetr.experiments.training_settings import LW_DETR_SETTINGS, RF_DETR_SETTINGS
from groupdetr.settings import Settings
from tests.parity.by_rule import read_golden

RATE, ENCODER_RATE, WEIGHT_DECAY = 1e-4, 1.5e-4, 1e-4
LAYER_DECAY, COMPONENT_DECAY = 0.8, 0.7
# (learning rate, weight decay), rounded, so that equal ones are one key
RateAndDecay = tuple[str, str]


def key(rate: float, decay: float) -> RateAndDecay:
    return f"{rate:.6e}", f"{decay:.6e}"


def lw_detr_rule(name: str) -> RateAndDecay:
    """LW-DETR's rule for a ViT of six blocks."""
    if not name.startswith("backbone.0.encoder."):
        in_decoder = name.startswith("transformer.decoder.")
        return key(RATE * (COMPONENT_DECAY if in_decoder else 1), WEIGHT_DECAY)
    block = re.search(r"\.blocks\.(\d+)\.", name)
    exponent = 7 if "embed" in name else 6 - int(block[1]) if block else 0
    is_decayed = not re.search("gamma|pos_embed|bias|norm", name)
    rate = ENCODER_RATE * COMPONENT_DECAY**2 * LAYER_DECAY**exponent
    return key(rate, WEIGHT_DECAY * is_decayed)


def rf_detr_rule(name: str) -> RateAndDecay:
    """RF-DETR's rule for the maps 3, 6, 9, 12, which counts 13 layers although there are 12."""
    if not name.startswith("backbone.0.encoder."):
        return lw_detr_rule(name)
    block = re.search(r"\.layer\.(\d+)\.", name)
    exponent = 14 if "embeddings" in name else 13 - int(block[1]) if block else 0
    is_decayed = not re.search("embeddings|bias|norm", name)
    rate = ENCODER_RATE * COMPONENT_DECAY**2 * LAYER_DECAY**exponent
    return key(rate, WEIGHT_DECAY * is_decayed)


@pytest.mark.parametrize(
    ("file", "recipe", "settings", "rule"),
    [
        ("lw_detr_tiny.json", LW_DETR_TINY, LW_DETR_SETTINGS["tiny"], lw_detr_rule),
        ("rf_detr_nano.json", RF_DETR_NANO, RF_DETR_SETTINGS, rf_detr_rule),
    ],
)
def test_every_weight_has_the_rate_and_the_decay_of_the_published_code(
    file: str, recipe: Recipe, settings: Settings, rule: Callable[[str], RateAndDecay]
) -> None:
    """As many numbers have each pair of rate and decay, until the end of the training."""
    expected: Counter[RateAndDecay] = Counter()
    for name, shape in read_golden(file)["shapes"].items():
        # Statistics are not trained, and the mask token has no gradient in any training.
        if not re.search("running_|num_batches|mask_token", name):
            expected[rule(name)] += math.prod(shape)
    with torch.device("meta"):
        model = replace(recipe, num_groups=13, num_queries=100).build()
    optimizer = create_optimizer(model, settings)
    set_learning_rates(optimizer, settings, step=0, progress=0.99)
    numbers: Counter[RateAndDecay] = Counter()
    for group in optimizer.param_groups:
        size = sum(parameter.numel() for parameter in group["params"])
        numbers[key(group["lr"], group["weight_decay"])] += size
    assert numbers == expected
    assert len(numbers) > 15
