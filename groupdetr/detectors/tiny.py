"""The -tiny and -micro presets: small detectors that train from scratch on a CPU in minutes."""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO, ViTDINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.rf_detr import RFDETR
from groupdetr.detectors.rf_detr_seg import RFDETRSeg
from groupdetr.modeling.attention.conditional_cross_attention import ConditionalCrossAttention
from groupdetr.modeling.backbones.registry import NONE_FROZEN, SMALL_RESNET, SMALL_VIT
from groupdetr.modeling.decoder import Decoder
from groupdetr.modeling.encoders.camera_encoder import CameraEncoder
from groupdetr.modeling.encoders.transformer_encoder import TransformerEncoder
from groupdetr.modeling.position_embedding import ContentScaledPositionEmbedding
from groupdetr.modeling.queries.learned_queries import LearnedAnchors, LearnedPoints3D
from groupdetr.modeling.queries.query_source import QuerySource

GAIN = 3.0  # initial sharpness of cross-attention, see `init_around_reference`
ANCHOR_SIZE = 0.27  # initial width and height of anchors
# Initial radius of the 3D points around the vehicle, normalised to the detection space: 34 metres.
POINTS_RADIUS = 1 / 3


@dataclass(frozen=True)
class Tiny(Recipe):
    """What makes a 2D detector small: it has less than a million parameters.

    It comes before the recipe of a detector in the list of base classes, so its fields and methods
    replace those of the detector.
    """

    backbone: str = SMALL_RESNET
    frozen_stages: int = NONE_FROZEN
    freeze_norms: bool = False
    channels: int = 64
    num_heads: int = 4
    num_queries: int = 50
    num_detections: int = 100
    dropout: float = 0.0
    encoder_layers: int = 1
    decoder_layers: int = 3
    dim_feedforward: int = 128

    def terms(self) -> list[Term]:
        """Return the terms of the detector, where the loss of the classes has weight 2.

        That is its weight in Conditional DETR.
        """
        _, *box_terms = super().terms()
        return [Focal(2.0, 2.0), *box_terms]


@dataclass(frozen=True)
class TinyDense(Tiny):
    """A small Conditional DETR, DAB-DETR or DN-DETR.

    Its initialisation saves about the first thousand steps of the training.
    """

    # The temperature of the image equals that of the queries, and the offset moves tokens to pixel
    # centres, so that the embeddings of positions in the image and of queries agree.
    temperature: float = 10000.0
    offset: float = -0.5
    strides: tuple[int, ...] = (8,)

    def build_encoder(self, in_channels: list[int]) -> TransformerEncoder:
        encoder = super().build_encoder(in_channels)
        assert isinstance(encoder, TransformerEncoder)
        if isinstance(encoder.position_embedding, ContentScaledPositionEmbedding):
            encoder.position_embedding.scale.init_constant(1.0)
        return encoder

    def build_queries(self) -> QuerySource:
        queries = super().build_queries()
        for module in queries.modules():
            if isinstance(module, LearnedAnchors):
                module.init_uniform_anchors(ANCHOR_SIZE)
        return queries

    def build_decoder(self) -> Decoder:
        decoder = super().build_decoder()
        for module in decoder.modules():
            if isinstance(module, ConditionalCrossAttention):
                module.init_around_reference(GAIN)
        return decoder


@dataclass(frozen=True)
class TinyDeformable(Tiny):
    """A small DAB-Deformable-DETR or DINO with levels of strides 8, 16 and 32."""

    num_levels: int = 3
    strides: tuple[int, ...] = (8, 16)


@dataclass(frozen=True)
class TinyConditionalDETR(TinyDense, ConditionalDETR):
    """Conditional DETR for a CPU."""


@dataclass(frozen=True)
class TinyDABDETR(TinyDense, DABDETR):
    """DAB-DETR for a CPU."""


@dataclass(frozen=True)
class TinyDNDETR(TinyDense, DNDETR):
    """DN-DETR for a CPU."""

    num_denoising: int = 20


@dataclass(frozen=True)
class TinyDABDeformableDETR(TinyDeformable, DABDeformableDETR):
    """DAB-Deformable-DETR for a CPU."""


@dataclass(frozen=True)
class TinyTwoStageDABDeformableDETR(TinyDeformable, TwoStageDABDeformableDETR):
    """Two-stage DAB-Deformable-DETR for a CPU."""


@dataclass(frozen=True)
class TinyDINO(TinyDeformable, DINO):
    """DINO for a CPU."""

    num_denoising: int = 20


@dataclass(frozen=True)
class TinyViTDINO(TinyDeformable, ViTDINO):
    """DINO with a plain Vision Transformer for a CPU.

    It runs the code of ViT-Huge at a small size.
    """

    backbone: str = SMALL_VIT
    num_levels: int = 4
    strides: tuple[int, ...] = (8, 16, 32, 64)
    num_denoising: int = 20


@dataclass(frozen=True)
class MicroRFDETR(RFDETR):
    """RF-DETR for a CPU, for images of about 128 by 128 pixels.

    Roboflow's smallest model is called nano, so this one is called micro.
    """

    strides: tuple[int, ...] = (8,)
    vit_width: int = 96
    vit_depth: int = 4
    vit_heads: int = 3
    global_blocks: tuple[int, ...] = (2,)
    map_blocks: tuple[int, ...] = (1, 3)
    position_grid: int = 16
    channels: int = 64
    num_heads: int = 4
    cross_attention_heads: int = 4
    num_queries: int = 50
    num_detections: int = 100
    decoder_layers: int = 2
    dim_feedforward: int = 128


@dataclass(frozen=True)
class MicroRFDETRSeg(MicroRFDETR, RFDETRSeg):
    """RF-DETR-Seg for a CPU, with windows as all of its published sizes but nano have them."""


@dataclass(frozen=True)
class TinyMask2Former(Mask2Former):
    """Mask2Former for a CPU."""

    backbone: str = SMALL_RESNET
    freeze_norms: bool = False
    channels: int = 64
    num_heads: int = 4
    num_queries: int = 50
    encoder_layers: int = 1
    decoder_layers: int = 3
    encoder_dim_feedforward: int = 128
    dim_feedforward: int = 128
    num_samples: int = 256


@dataclass(frozen=True)
class TinyPETR(PETR):
    """PETR for a CPU, for images of about 160 by 64 pixels.

    Its initialisation saves some hundred steps of the training. The position embeddings of tokens
    and queries start with the magnitude of the features, so that attention depends on positions
    from the first step.
    """

    backbone: str = SMALL_RESNET
    strides: tuple[int, ...] = (8, 16)
    channels: int = 64
    num_heads: int = 4
    num_queries: int = 100
    num_detections: int = 100
    dropout: float = 0.0
    decoder_layers: int = 3
    dim_feedforward: int = 128
    grid_mask: float = 0.0

    def build_encoder(self, in_channels: list[int]) -> CameraEncoder:
        encoder = super().build_encoder(in_channels)
        encoder.point_embed.init_kaiming()
        encoder.view_embed.init_kaiming()
        return encoder

    def build_queries(self) -> LearnedPoints3D:
        queries = super().build_queries()
        queries.init_around_origin(POINTS_RADIUS)
        queries.position_embedding.init_kaiming()
        return queries


@dataclass(frozen=True)
class TinyPETRv2(TinyPETR, PETRv2):
    """PETRv2 for a CPU."""
