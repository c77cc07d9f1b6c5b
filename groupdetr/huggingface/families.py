"""The detectors of transformers that can be trained with groups, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from groupdetr.errors import UsageError
from groupdetr.huggingface.queries import (
    EncoderProposals,
    LearnedQueries,
    QuerySource,
    SharedProposals,
)


def any_configuration(config: Any) -> None:
    """Every configuration of the family is supported."""


def without_patterns(config: Any) -> None:
    """Refuse DAB-DETR with patterns, whose queries are not a table with one row for each."""
    if config.num_patterns:
        raise UsageError(
            f"DAB-DETR with patterns cannot have groups: num_patterns is {config.num_patterns}",
            remedy="build the model with num_patterns=0",
        )


def without_initial_query(config: Any) -> None:
    """Refuse learned contents beside proposals, which transformers itself cannot run."""
    if config.learn_initial_query:
        raise UsageError(
            "detectors of transformers with learn_initial_query=True fail in transformers itself",
            remedy="build the model with learn_initial_query=False",
        )


@dataclass(frozen=True)
class Family:
    """A class of transformers and the parts of it that groups concern.

    Names of modules are relative to ``base``, the name of the base model in the detector.
    """

    name: str  # as in papers
    model_class: str
    queries: Callable[[Any], QuerySource]  # of a configuration
    base: str = "model"
    decoder_layers: str = "decoder.layers"
    self_attention: str = "self_attn"  # of a decoder layer
    query_axis: int = 1  # of what the self-attention module is called with
    # Relative to the detector: the loss module, if the loss is not a function, and the head that
    # computes masks, if it has to know the number of queries
    criterion: str = ""
    mask_head: str = ""
    require: Callable[[Any], None] = any_configuration  # raises `UsageError` for a configuration
    denoising: bool = False
    # The axis of the queries in outputs of the decoder where it is not that of other families
    decoder_axes: Mapping[str, int] = field(default_factory=dict)


def learned_queries(*names: str) -> Callable[[Any], QuerySource]:
    """Return a function that gives the same learned queries for every configuration."""
    return lambda config: LearnedQueries(names)


def encoder_proposals(config: Any) -> QuerySource:
    """Return the queries of RT-DETR and the families that follow it."""
    return EncoderProposals(("enc_output", "enc_score_head", "enc_bbox_head"))


def queries_of_deformable_detr(config: Any) -> QuerySource:
    """Return the queries of Deformable DETR with one or two stages."""
    if config.two_stage:
        return SharedProposals(("pos_trans", "pos_trans_norm"))
    return LearnedQueries(("query_position_embeddings",))


FAMILIES = (
    Family("DETR", "DetrForObjectDetection", learned_queries("query_position_embeddings")),
    Family(
        "Conditional DETR",
        "ConditionalDetrForObjectDetection",
        learned_queries("query_position_embeddings"),
        decoder_axes={"reference_points": 0},
    ),
    Family(
        "Table Transformer",
        "TableTransformerForObjectDetection",
        learned_queries("query_position_embeddings"),
    ),
    Family(
        "DAB-DETR",
        "DabDetrForObjectDetection",
        learned_queries("query_refpoint_embeddings"),
        require=without_patterns,
    ),
    Family("Deformable DETR", "DeformableDetrForObjectDetection", queries_of_deformable_detr),
    Family(
        "RT-DETR",
        "RTDetrForObjectDetection",
        encoder_proposals,
        require=without_initial_query,
        denoising=True,
    ),
    Family(
        "RT-DETRv2",
        "RTDetrV2ForObjectDetection",
        encoder_proposals,
        require=without_initial_query,
        denoising=True,
    ),
    Family(
        "D-FINE",
        "DFineForObjectDetection",
        encoder_proposals,
        require=without_initial_query,
        denoising=True,
    ),
    Family(
        "DEIMv2",
        "Deimv2ForObjectDetection",
        encoder_proposals,
        require=without_initial_query,
        denoising=True,
    ),
    Family(
        "DETR, segmentation",
        "DetrForSegmentation",
        learned_queries("query_position_embeddings"),
        base="detr.model",
        mask_head="mask_head",
    ),
    Family(
        "Conditional DETR, segmentation",
        "ConditionalDetrForSegmentation",
        learned_queries("query_position_embeddings"),
        base="conditional_detr.model",
        mask_head="mask_head",
    ),
    Family(
        "Mask2Former",
        "Mask2FormerForUniversalSegmentation",
        learned_queries("queries_embedder", "queries_features"),
        base="model.transformer_module",
        query_axis=0,
        criterion="criterion",
    ),
    Family(
        "MaskFormer",
        "MaskFormerForInstanceSegmentation",
        learned_queries("queries_embedder"),
        base="model.transformer_module",
        criterion="criterion",
    ),
)


@dataclass(frozen=True)
class FamilyWithOwnGroups:
    """A class that transformers itself trains with `config.group_detr` groups."""

    name: str
    model_class: str
    base: str  # the name of the base model in the detector


OWN_GROUPS = (
    FamilyWithOwnGroups("LW-DETR", "LwDetrForObjectDetection", "model"),
    FamilyWithOwnGroups("RF-DETR", "RfDetrForObjectDetection", "model"),
    FamilyWithOwnGroups(
        "RF-DETR, instance segmentation", "RfDetrForInstanceSegmentation", "model.model"
    ),
)

# Why other detectors of transformers with object queries are not supported
REASONS = {
    "YolosForObjectDetection": "its queries are tokens of the encoder, where they attend to each "
    "other and to the image in one self-attention",
    "GroundingDinoForObjectDetection": "its decoder attends to text, too",
    "MMGroundingDinoForObjectDetection": "its decoder attends to text, too",
    "OmDetTurboForObjectDetection": "its queries attend to each other and to text in one "
    "self-attention",
    "OneFormerForUniversalSegmentation": "its queries are compared with text by a contrastive loss",
}


def supported_classes() -> dict[str, str]:
    """Return the classes of transformers that can be trained with groups: class -> family.

    >>> ghf.supported_classes()["RTDetrV2ForObjectDetection"]
    'RT-DETRv2'
    """
    return {family.model_class: family.name for family in (*FAMILIES, *OWN_GROUPS)}


def class_in(model: Any, names: Collection[str]) -> str | None:
    """Return the first class of a model, or of its ancestors, that is among names of classes."""
    for ancestor in type(model).__mro__:
        # A class of another library may have the same name.
        if ancestor.__name__ in names and ancestor.__module__.startswith("transformers."):
            return ancestor.__name__
    return None


def family_with_own_groups(model: Any) -> FamilyWithOwnGroups | None:
    """Return the family of a model that transformers itself trains with groups, or None."""
    by_class = {family.model_class: family for family in OWN_GROUPS}
    name = class_in(model, by_class)
    return by_class[name] if name else None


def family_of(model: Any) -> Family:
    """Return the family of a detector. `UsageError` says why another model has none."""
    by_class = {family.model_class: family for family in FAMILIES}
    name = class_in(model, by_class)
    if name is not None:
        return by_class[name]
    name = class_in(model, REASONS)
    reason = f": {REASONS[name]}" if name else ""
    raise UsageError(
        f"a {type(model).__name__} cannot be trained with groups{reason}",
        where="supported classes of transformers: " + ", ".join(sorted(supported_classes())),
        remedy="choose one of them; for a detector of your own, see docs/own-detr.md",
    )
