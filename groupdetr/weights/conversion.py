"""Recognises the layout of a file of weights, and converts its tensors to our names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import IdAndName, Layout, Metadata, RecipeFields, refuse
from groupdetr.checkpoints.metadata import (
    MAX_IMGSZ,
    check_categories,
    check_recipe_fields,
    check_text,
    invalid,
)
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.checkpoints.wrappers import unwrap
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.pretrained_layouts import BACKBONES, refuse_backbone_only
from groupdetr.weights.coco_names import UNUSED_CLASS
from groupdetr.weights.detrex_dino import DETREX_DINO
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE, own_fields, own_preset
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_lw_detr import HUGGING_FACE_LW_DETR
from groupdetr.weights.huggingface_mask2former import HUGGING_FACE_MASK2FORMER
from groupdetr.weights.huggingface_processor import processor_fields, processor_side
from groupdetr.weights.huggingface_rf_detr import (
    HUGGING_FACE_RF_DETR,
    HUGGING_FACE_RF_DETR_MODULES,
    HUGGING_FACE_RF_DETR_SEG,
)
from groupdetr.weights.official_conditional_detr import OFFICIAL
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO
from groupdetr.weights.official_lw_detr import OFFICIAL_LW_DETR
from groupdetr.weights.official_mask2former import OFFICIAL_MASK2FORMER
from groupdetr.weights.official_petr import MMDET3D_PETR, OFFICIAL_PETR
from groupdetr.weights.paddledetection_dino import PADDLEDETECTION_DINO
from groupdetr.weights.roboflow_rf_detr import ROBOFLOW_RF_DETR, ROBOFLOW_RF_DETR_SEG


def _native_recipe(file: Checkpoint) -> RecipeFields:
    fields = dict(file.metadata.get("recipe", {}))
    fields.pop("class", None)  # not a field: the class of the recipe
    # A file cannot make this library read another file, or download one.
    fields.pop("pretrained_backbone", None)
    return fields


def _native_categories(metadata: Metadata) -> list[IdAndName]:
    return [(id, name) for id, name in metadata.get("categories", [])]


def _native_preset(file: Checkpoint) -> str:
    recipe = _native_recipe(file)
    if "preset" not in recipe:
        raise WeightsError(
            "the file does not say which model it is",
            file.where,
            f"name the model: groupdetr import {quote(file.where)} --model NAME "
            "(Python: preset=NAME)",
        )
    return str(recipe["preset"])


NATIVE = Layout(
    title="groupdetr",
    preset=_native_preset,
    signature=("backbone.network.*", "decoder.*"),
    names={"*": "*"},
    options=_native_recipe,
    categories=_native_categories,
)
OTHER_GROUPS = "other_groups"  # how `groupdetr.huggingface` calls groups 1 to K-1 of a table
# A file has the first layout that fits. The names of DN-DETR fit DAB-DETR, too.
LAYOUTS = (
    NATIVE,
    OFFICIAL,
    OFFICIAL_DN,
    OFFICIAL_DAB,
    OFFICIAL_DINO,
    OFFICIAL_DAB_DEFORMABLE,
    DETREX_DINO,
    PADDLEDETECTION_DINO,
    OFFICIAL_LW_DETR,
    ROBOFLOW_RF_DETR_SEG,  # Its files have all names of a detector, too.
    ROBOFLOW_RF_DETR,
    HUGGING_FACE_LW_DETR,
    HUGGING_FACE_RF_DETR_SEG,
    HUGGING_FACE_RF_DETR,
    HUGGING_FACE_RF_DETR_MODULES,
    HUGGING_FACE,
    HUGGING_FACE_DAB,
    OFFICIAL_MASK2FORMER,
    HUGGING_FACE_MASK2FORMER,
    OFFICIAL_PETR,
    MMDET3D_PETR,
)


def convert_checkpoint(
    source: str | Path, layout_title: str | None = None, entry: str | None = None
) -> tuple[Layout, Checkpoint]:
    """Return a file's layout, and its tensors under our names.

    ``layout_title`` selects that layout, if the file's names fit it. A file without metadata has
    the only layout that its names fit, if there is only one. ``entry`` as in `load_weights`.
    """
    checkpoint = unwrap(with_all_groups(_open(source, entry)), (*LAYOUTS, *BACKBONES))
    refuse_adapters(checkpoint)
    fitting = [layout for layout in LAYOUTS if layout.fits(checkpoint.state)]
    is_unambiguous = len(fitting) == 1 and not checkpoint.metadata
    for layout in fitting:
        if layout_title is None:
            is_selected = is_unambiguous or layout.matches_metadata(checkpoint.metadata)
        else:
            is_selected = layout.title == layout_title
        if is_selected:
            averages = [key for key in layout.averages if key in checkpoint.other_entries]
            if entry is None and averages:
                return convert_checkpoint(source, layout.title, averages[0])
            return layout, layout.convert(checkpoint)

    if fitting:
        titles = " or ".join(layout.title for layout in fitting)
        title = fitting[0].title
        raise WeightsError(
            f"by its names it may be {titles}, and it does not say which",
            checkpoint.where,
            f'name the layout: groupdetr import {quote(checkpoint.where)} --layout "{title}" '
            f'(Python: layout="{title}")',
        )
    if any(layout.fits(checkpoint.state) for layout in BACKBONES):
        refuse_backbone_only(checkpoint)
    known = ", ".join(layout.title for layout in LAYOUTS)
    refuse(checkpoint.state, f"no known layout ({known}) has these names:", checkpoint.where)
    raise WeightsError(
        "there is no tensor in the file",
        checkpoint.where,
        "pass a file with the weights of a model",
    )


def with_all_groups(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose tables of queries have the rows of all groups.

    `groupdetr.huggingface` saves group 0 under the names of transformers, [N,C], and the others
    beside it, [K-1,N,C]. Here, they follow each other: [K*N,C].
    """
    state, metadata = dict(checkpoint.state), checkpoint.metadata
    for name, others in checkpoint.state.items():
        table = f"{name.removesuffix(OTHER_GROUPS)}weight"
        if not name.endswith(f".{OTHER_GROUPS}") or table not in state:
            continue
        if others.shape[1:] == state[table].shape:
            del state[name]
            state[table] = torch.cat([state[table], others.flatten(0, 1)])
            metadata = {**metadata, "group_detr": 1 + len(others)}
    return replace(checkpoint, state=state, metadata=metadata)


def refuse_adapters(checkpoint: Checkpoint) -> None:
    """Raise `WeightsError` for weights with low-rank adapters (LoRA), which are not merged."""
    adapters = [name for name in checkpoint.state if ".base_model.model." in f".{name}"]
    if adapters or any(".lora_" in name for name in checkpoint.state):
        path = Path(checkpoint.where).absolute()
        raise WeightsError(
            "these weights have low-rank adapters (LoRA), which are not merged into the network",
            checkpoint.where,
            "merge them with the program that trained them, and pass the merged weights; with "
            f"rfdetr: m = rfdetr.RFDETR.from_checkpoint({str(path)!r}), then torch.save("
            '{"model": m.model.model.state_dict(), "args": {**vars(m.model.args), '
            '"class_names": m.class_names}}, "merged.pth")',
        )


def _open(source: str | Path, entry: str | None) -> Checkpoint:
    """Open a checkpoint. For the name of a model, the error says where weights come from."""
    # Presets are above this package, and only this error needs them.
    from groupdetr.registry import list_models

    if str(source) in list_models() and not Path(source).exists():
        raise WeightsError(
            "this is the name of a model, and not a file of its weights",
            str(source),
            "download the published weights of the detector, and pass the file; "
            "docs/reproducing.md lists the files that can be read",
        )
    return open_checkpoint(source, entry)


def file_options(layout: Layout, file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that a file's metadata gives.

    Those of an image processor, and those that this library wrote to the metadata of another
    layout, are among them. `WeightsError` if they are not numbers, texts, or lists of these.
    """
    with odd_metadata(file.where):
        options = {
            **layout.options(file),
            **processor_fields(file.metadata),
            **own_fields(file.metadata),
        }
    check_recipe_fields(options, file.where)
    return options


def file_preset(layout: Layout, file: Checkpoint) -> str:
    """Return the preset that a file belongs to. `WeightsError` if that is unclear.

    Where the layout does not show it, such as that of other sizes than the published ones, it is
    the one that this library wrote to the metadata.
    """
    with odd_metadata(file.where):
        try:
            preset = layout.preset(file)
        except WeightsError:
            recorded = own_preset(file.metadata)
            if recorded is None:
                raise
            preset = recorded
    check_text("the name of the model", preset, file.where)
    return preset


def file_image_size(layout: Layout, file: Checkpoint) -> int | None:
    """Return the shortest side of the images of a file in pixels, None if it does not say it.

    `WeightsError` if it is larger than any image can be.
    """
    with odd_metadata(file.where):
        side = processor_side(file.metadata) or layout.image_size(file)
    if side is not None and not 1 <= side <= MAX_IMGSZ:
        raise invalid("the size of images", side, f"at most {MAX_IMGSZ} pixels", file.where)
    return side


def file_categories(layout: Layout, file: Checkpoint, num_classes: int) -> list[IdAndName]:
    """Return the id and name of each of the file's classes, of which there are ``num_classes``.

    It is [] if the file has none, or has another number of them. `WeightsError` if they are not
    pairs of an id and a name.
    """
    with odd_metadata(file.where):
        categories = layout.categories(file.metadata)
    check_categories(categories, file.where)
    if layout.has_unused_class and len(categories) == num_classes - 1:
        # Ids may be texts, too.
        last_id = max((id for id, _ in categories if isinstance(id, int)), default=-1)
        categories = [*categories, (last_id + 1, UNUSED_CLASS)]
    return categories if len(categories) == num_classes else []


@contextmanager
def odd_metadata(where: str) -> Iterator[None]:
    """Turn the errors of reading metadata into a `WeightsError`.

    The entries may be anything, and fail in as many ways.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise WeightsError(
            f"the metadata of this file cannot be used: {str(e).partition(chr(10))[0][:200]}",
            where,
            "get the file again from a source that you trust",
        ) from e
