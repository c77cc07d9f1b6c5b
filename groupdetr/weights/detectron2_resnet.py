"""The names of a ResNet's tensors in detectron2.

Its own checkpoints have them, and those of detrex and of Mask2Former's authors.
"""

from __future__ import annotations

from collections.abc import Iterator

from groupdetr.checkpoints.layout import Names, with_prefixes


def _resnet() -> Iterator[tuple[str, str]]:
    """Yield their names and torchvision's. Their norm is a part of the convolution before it."""
    yield "stem.conv1.norm.*", "bn1.*"
    yield "stem.conv1.*", "conv1.*"
    for stage in range(1, 5):
        theirs, ours = f"res{stage + 1}.#", f"layer{stage}.#"
        yield f"{theirs}.shortcut.norm.*", f"{ours}.downsample.1.*"
        yield f"{theirs}.shortcut.*", f"{ours}.downsample.0.*"
        for layer in range(1, 4):
            yield f"{theirs}.conv{layer}.norm.*", f"{ours}.bn{layer}.*"
            yield f"{theirs}.conv{layer}.*", f"{ours}.conv{layer}.*"


RESNET: Names = with_prefixes(dict(_resnet()), "backbone.", "backbone.network.")
