"""Prediction heads: from a query to class logits and a box, a 3D box, or a mask."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.linear import Linear, init_linear_bias, init_linear_weight
from groupdetr.modeling.mlp import MLP
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes
from groupdetr.ops.boxes import inverse_sigmoid, move_boxes
from groupdetr.ops.boxes3d import CENTRE, CODE_SIZE, VELOCITY
from groupdetr.structures.memory import Memory, PixelMemory, SceneMemory
from groupdetr.structures.predictions import Predictions

PRIOR_PROB = 0.01  # initial score of every class (focal loss, Lin et al. 2017, Sec. 3.3)
PRIOR_BIAS = -math.log((1 - PRIOR_PROB) / PRIOR_PROB)  # bias of a class head with this score
# Lower and upper bounds of the detection space, in which the centres of predicted 3D boxes lie: x,
# y and z in metres. It is `pc_range` in PETR's code.
DETECTION_LOW = (-51.2, -51.2, -5.0)
DETECTION_HIGH = (51.2, 51.2, 3.0)


def init_prior_bias(bias: Tensor) -> None:
    """Set the bias of a class head so that every class starts with the score `PRIOR_PROB`."""
    nn.init.constant_(bias, PRIOR_BIAS)


# The linear layer ``classify`` of heads whose classes start with the score `PRIOR_PROB`.
CLASSIFY_AXES = {
    "classify.weight": ParameterAxes((Axis.CLASS,), init_linear_weight),
    "classify.bias": ParameterAxes((Axis.CLASS,), init_prior_bias),
}


class PredictionHead(nn.Module, ABC):
    """Queries [...,N,C] and their reference [...,N,R] -> `Predictions`.

    Heads work on the last axis and do not depend on groups. A head declares which axes of its
    parameters are the classes in a method ``parameter_axes``; see
    `groupdetr.modeling.parameter_axes`.
    """

    @abstractmethod
    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions: ...


class BoxHead(PredictionHead):
    """Class logits and a box relative to the reference point or box.

    ``eps`` is that of `inverse_sigmoid`.
    """

    def __init__(self, channels: int, num_classes: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.classify = Linear(channels, num_classes)
        self.regress = MLP(channels, channels, 4, num_layers=3)
        init_prior_bias(self.classify.bias)
        self.regress.init_last_layer_zero()

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return CLASSIFY_AXES

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        return Predictions(self.classify(x), self.box(x, reference))

    def box(self, x: Tensor, reference: Tensor) -> Tensor:
        """Return the box [...,N,4]: sigmoid(MLP(x) + inverse_sigmoid(reference))."""
        reference_logits = inverse_sigmoid(reference.float(), self.eps)
        # A reference point has no width and height, so nothing is added to those of the MLP.
        reference_logits = F.pad(reference_logits, (0, 4 - reference_logits.shape[-1]))
        return (self.regress(x) + reference_logits).sigmoid()


class RelativeBoxHead(PredictionHead):
    """Class logits and a box relative to the reference box, without a sigmoid (LW-DETR).

    See `groupdetr.ops.boxes.move_boxes`.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classify = Linear(channels, num_classes)
        self.regress = MLP(channels, channels, 4, num_layers=3)
        init_prior_bias(self.classify.bias)
        self.regress.init_last_layer_zero()

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return CLASSIFY_AXES

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        return Predictions(self.classify(x), move_boxes(reference, self.regress(x)))


class Box3DHead(PredictionHead):
    """Class logits and an encoded 3D box (`ops.boxes3d`) relative to the reference point.

    The reference [...,N,3] is in [0,1] of the detection space, which has 102.4 m by 102.4 m by 8 m.
    The predicted centre lies in it, too. ``regress`` maps [...,N,C] to [...,N,10]. ``eps`` is that
    of `inverse_sigmoid`.
    """

    centre_index: Tensor  # [3] indices of x, y and z in an encoded box
    low: Tensor  # [3] lower bounds of the detection space, in metres
    extent: Tensor  # [3] its size, in metres

    def __init__(self, channels: int, num_classes: int, regress: nn.Module, eps: float) -> None:
        super().__init__()
        self.cls_branch = nn.Sequential(
            Linear(channels, channels),
            nn.LayerNorm(channels),
            nn.ReLU(),
            Linear(channels, channels),
            nn.LayerNorm(channels),
            nn.ReLU(),
        )
        self.classify = Linear(channels, num_classes)
        self.regress = regress
        self.eps = eps
        self.register_buffer("centre_index", torch.tensor(CENTRE), persistent=False)
        low = torch.tensor(DETECTION_LOW)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("extent", torch.tensor(DETECTION_HIGH) - low, persistent=False)
        init_prior_bias(self.classify.bias)

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return CLASSIFY_AXES

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        return Predictions(self.classify(self.cls_branch(x)), self.encoded_box(x, reference))

    def encoded_box(self, x: Tensor, reference: Tensor) -> Tensor:
        """Return the encoded box [...,N,10], whose centre is in metres."""
        encoded = self.regress(x)
        reference_logits = inverse_sigmoid(reference.float(), self.eps)
        centre = (encoded[..., self.centre_index] + reference_logits).sigmoid()  # in [0,1]
        centre = centre * self.extent + self.low
        return encoded.to(centre.dtype).index_copy(-1, self.centre_index, centre)


class Box3DVelocityHead(Box3DHead):
    """`Box3DHead` for images of two frames (PETRv2).

    The network predicts the displacement of an object between the frames. The head divides it by
    the time between them.
    """

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        assert isinstance(memory, SceneMemory)
        predictions = super().forward(x, reference, memory)
        box, displacement = predictions.boxes.split([VELOCITY, CODE_SIZE - VELOCITY], dim=-1)
        velocity = displacement / memory.elapsed.view(-1, 1, 1, 1)
        return predictions.with_values(predictions.logits, torch.cat([box, velocity], dim=-1))


class MultiBranchRegression(nn.Module):
    """Encoded boxes [...,N,10] by five MLPs with shared first layers (PETRv2).

    The branches predict: x and y; log w; log l, z and log h; sine and cosine of the angle; the
    velocity. The published code has other names for the second and the third branch, but these are
    the numbers that they predict.
    """

    BRANCH_SIZES = (2, 1, 3, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = MLP(channels, channels, channels, num_layers=2)
        self.branches = nn.ModuleList(
            MLP(channels, channels, size, num_layers=2) for size in self.BRANCH_SIZES
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(x))
        return torch.cat([branch(x) for branch in self.branches], dim=-1)


class MaskHead(PredictionHead):
    """Class logits, the last of which is "no object", and the embedding of a mask (Mask2Former)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classify = Linear(channels, num_classes)
        self.no_object = Linear(channels, 1)
        self.embed = MLP(channels, channels, channels, num_layers=3)

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        # A softmax over classes has no prior score, so its bias starts as in any linear layer.
        init_bias = partial(init_linear_bias, in_features=self.classify.in_features)
        return {
            "classify.weight": ParameterAxes((Axis.CLASS,), init_linear_weight),
            "classify.bias": ParameterAxes((Axis.CLASS,), init_bias),
        }

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        assert isinstance(memory, PixelMemory)
        logits = torch.cat([self.classify(x), self.no_object(x)], dim=-1)
        return Predictions(logits, self.embed(x), memory.mask_features)
