"""From pixels to feature maps, fine to coarse: timm's networks, as detectors use them."""
