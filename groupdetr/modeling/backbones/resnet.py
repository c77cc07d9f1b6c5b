"""ResNets: ResNet-50 as in all official detectors, and a small one to train from scratch."""

from __future__ import annotations

from timm.models import FeatureListNet
from torch import nn

from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.folded_bottleneck import fold_bottlenecks
from groupdetr.modeling.backbones.frozen_batch_norm import freeze_norms
from groupdetr.modeling.backbones.pretrained import create_network
from groupdetr.modeling.backbones.pretrained_layouts import RESNET

FROZEN = ("conv1", "layer1")  # not trained in all official detectors
NUM_STAGES = 4  # of timm's ResNets


def resnet50(
    pretrained: bool | str,
    dilated: bool = False,
    levels: tuple[int, ...] = (4,),
    frozen: tuple[str, ...] = FROZEN,
    multiple: int = 1,
) -> Backbone:
    """Return the stages ``levels`` of ResNet-50 with frozen batch norm and ``frozen`` submodules.

    Stage s has stride 2 ** (s + 1) and 128 * 2 ** s channels. With ``dilated`` (DC5), stage 4 keeps
    stride 16; its first block has dilation 1 and the others 2, as in torchvision. ``pretrained`` is
    True for ImageNet V1 weights from the hub, or the path of a local file with them.
    """
    stride = 16 if dilated else 32
    network = _create_stages("resnet50.tv_in1k", pretrained, levels, output_stride=stride)
    channels = network.feature_info.channels()
    fold_bottlenecks(freeze_norms(network))
    return Backbone(network, channels, frozen, multiple=multiple)


def small_resnet(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    levels: tuple[int, ...] | None = None,
    multiple: int = 1,
    augment: nn.Module | None = None,
) -> Backbone:
    """Return the stages ``levels`` of a small ResNet with group norm, which is never pretrained.

    ``widths`` and ``depths`` are the channels and blocks of its stages. Stage s has stride
    2 ** (s + 1). By default only the last stage is returned.

    Group norm does not mix images, so a batch can be split into micro-batches without a difference.
    Unlike timm's default, the last norm of a residual branch does not start at zero, because there
    are few branches and little time to train them.
    """
    # timm always builds four stages and drops those after the last one that is returned.
    num_unused = NUM_STAGES - len(widths)
    network = _create_stages(
        "resnet10t",
        False,
        levels or (len(widths),),
        channels=(*widths, *[widths[-1]] * num_unused),
        layers=(*depths, *[1] * num_unused),
        norm_layer="groupnorm1",
        stem_width=widths[0] // 2,
        zero_init_last=False,
    )
    channels = network.feature_info.channels()
    return Backbone(network, channels, multiple=multiple, augment=augment)


def _create_stages(
    name: str, pretrained: bool | str, levels: tuple[int, ...], **options: object
) -> FeatureListNet:
    """Return a timm network whose forward pass returns the feature maps of stages ``levels``."""
    network = create_network(
        name, pretrained, (RESNET,), features_only=True, out_indices=levels, **options
    )
    assert isinstance(network, FeatureListNet)
    return network
