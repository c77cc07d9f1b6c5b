"""What detectron2 calls the tensors of its ResNet: in its own checkpoints, in detrex's and in Mask2Former's."""

from __future__ import annotations

from collections.abc import Iterator

from groupdetr.checkpoints.layout import Names, within


def _resnet() -> Iterator[tuple[str, str]]:
    """To torchvision's names. A norm is part of the convolution before it."""
    yield "stem.conv1.norm.*", "bn1.*"
    yield "stem.conv1.*", "conv1.*"
    for stage in range(1, 5):
        block, ours = f"res{stage + 1}.#", f"layer{stage}.#"
        yield f"{block}.shortcut.norm.*", f"{ours}.downsample.1.*"
        yield f"{block}.shortcut.*", f"{ours}.downsample.0.*"
        for layer in range(1, 4):
            yield f"{block}.conv{layer}.norm.*", f"{ours}.bn{layer}.*"
            yield f"{block}.conv{layer}.*", f"{ours}.conv{layer}.*"


RESNET: Names = within(dict(_resnet()), "backbone.", "backbone.network.")
