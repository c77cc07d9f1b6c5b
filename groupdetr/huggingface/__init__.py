"""Groups on detectors of Hugging Face transformers, and the plain detectors back.

>>> import groupdetr.huggingface as ghf
>>> model = ghf.with_groups(detector, num_groups=11)
"""

from groupdetr.huggingface.checkpoints import load_with_groups
from groupdetr.huggingface.families import supported_classes
from groupdetr.huggingface.wrapping import num_groups, with_groups, without_groups

__all__ = [
    "load_with_groups",
    "num_groups",
    "supported_classes",
    "with_groups",
    "without_groups",
]
