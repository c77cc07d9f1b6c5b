"""The detectors of the paper's ablations: each differs from Group DETR in one choice.

The choices are the functions of `groupdetr.groups` (Table 7, Fig. 8).
"""

from __future__ import annotations

from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.tiny import TinyConditionalDETR, TinyDNDETR
from groupdetr.groups import attend_across_groups, denoise_primary_group, match_naively


class JointGroups(ConditionalDETR):
    """Table 7 (c): groups without separate self-attention."""

    group_attention = staticmethod(attend_across_groups)


class NaiveOneToMany(JointGroups):
    """Table 7 (b): all queries attend to each other, and every object is assigned to K of them."""

    match = staticmethod(match_naively)


class DenoisingInPrimaryGroup(DNDETR):
    """Fig. 8, the other reading of the paper: only the primary group has denoising losses."""

    denoise = staticmethod(denoise_primary_group)


class TinyJointGroups(TinyConditionalDETR):
    """Table 7 (c) for a CPU."""

    group_attention = staticmethod(attend_across_groups)


class TinyNaiveOneToMany(TinyJointGroups):
    """Table 7 (b) for a CPU."""

    match = staticmethod(match_naively)


class TinyDenoisingInPrimaryGroup(TinyDNDETR):
    """`DenoisingInPrimaryGroup` for a CPU."""

    denoise = staticmethod(denoise_primary_group)
