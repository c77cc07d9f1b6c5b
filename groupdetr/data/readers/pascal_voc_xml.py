"""One XML file of a Pascal VOC dataset, with the masks of its objects."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from xml.parsers.expat import ExpatError

import numpy as np
from faster_coco_eval.core import mask as coco

from groupdetr.data.findings import Finding, Findings, RefusedError, printable
from groupdetr.data.image_decoding import open_image
from groupdetr.data.readers.pascal_voc_folders import XML_FOLDERS, ImageIndex
from groupdetr.structures.json_object import JsonObject

_MAX_BYTES = 1 << 24  # of an XML file


@dataclass
class AnnotatedObject:
    """An object of an XML file that can be used."""

    name: str
    corners: tuple[float, float, float, float]  # as written: left, top, right, bottom
    difficult: bool
    record: str
    number: int  # from 1 on, in the order of the file
    mask: JsonObject | None = None  # COCO's compressed run lengths


@dataclass
class XmlAnnotation:
    """The content of an XML file."""

    file: Path
    image: Path | None = None
    recorded_name: str = ""
    size: tuple[int, int] | None = None
    objects: list[AnnotatedObject] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def has_zero_corner(self) -> bool:
        """Return whether a box begins at 0, so that coordinates cannot begin at 1."""
        corners = [item.corners for item in self.objects]
        return any(0 <= min(x0, y0) < 1 for x0, y0, _, _ in corners)


def read_xml(file: Path, images: ImageIndex) -> XmlAnnotation:
    """Read an XML file and find its image. What cannot be used becomes a finding."""
    findings = Findings(file)
    annotation = XmlAnnotation(file, findings=findings)
    root = _parse_xml(file, findings)
    if root is None:
        annotation.image = images.find(file, "")
        return annotation
    # A path of Windows in <filename> has folders of somebody else's machine.
    annotation.recorded_name = PureWindowsPath(_text(root, "filename")).name
    annotation.image = images.find(file, annotation.recorded_name)
    annotation.size = _size(root)
    for number, element in enumerate(root.findall("object"), 1):
        item = _read_object(element, number, findings)
        if item is not None:
            annotation.objects.append(item)
    return annotation


def read_masks(annotation: XmlAnnotation, folder: Path) -> None:
    """Add the masks of the objects of an image, if there is a file of them in ``folder``."""
    file = _mask_file(annotation.file, folder)
    if not file.is_file():
        return
    try:
        with open_image(file) as image:
            mode, numbers = image.mode, np.asarray(image)
    except RefusedError as error:
        annotation.findings.append(Finding("mask-malformed", str(file), "", error.finding.what))
        return
    if numbers.ndim != 2:
        what = f"its pixels are colours (mode {mode}), and not the numbers of objects"
        annotation.findings.append(Finding("mask-malformed", str(file), "", what))
        return
    for item in annotation.objects:
        pixels = numbers == item.number
        if pixels.any():
            (rle,) = coco.encode(np.asfortranarray(pixels[:, :, None], dtype=np.uint8))
            item.mask = {"size": list(pixels.shape), "counts": rle["counts"].decode()}


def _mask_file(xml_file: Path, folder: Path) -> Path:
    """Return the file in ``folder`` that the masks of an image are in, if there is one.

    It is in the same subfolders as the XML file is in its folder.
    """
    parts = xml_file.parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() in XML_FOLDERS:
            return folder.joinpath(*parts[index + 1 :]).with_suffix(".png")
    return folder / f"{xml_file.stem}.png"


def without_xml(file: Path, images: ImageIndex) -> XmlAnnotation:
    """Return what is known of an image that a list names, and that has no XML file."""
    findings = Findings(file)
    findings.add("xml-missing", "", "there is no such file")
    return XmlAnnotation(file, images.find(file, ""), findings=findings)


def _parse_xml(file: Path, findings: Findings) -> ElementTree.Element | None:
    try:
        if file.stat().st_size > _MAX_BYTES:
            findings.add("xml-malformed", "", f"it has more than {_MAX_BYTES:,} bytes")
            return None
        content = file.read_bytes()
    except OSError as error:
        findings.add("unreadable-text", "", f"it cannot be read ({error.strerror})")
        return None
    if b"<!ENTITY" in content:
        # Entities that contain each other would grow without end.
        findings.add("xml-malformed", "", "it defines entities")
        return None
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ExpatError, ValueError, LookupError) as error:
        findings.add("xml-malformed", "", f"it is not valid XML ({error})")
        return None
    if root.tag != "annotation":
        what = f"it begins with <{printable(root.tag)[1:-1]}>, and not with <annotation>"
        findings.add("xml-malformed", "", what)
        return None
    return root


def _read_object(
    element: ElementTree.Element, number: int, findings: Findings
) -> AnnotatedObject | None:
    record = f"object {number}"
    name = _text(element, "name")
    if not name:
        findings.add("xml-object", record, "it has no <name>")
        return None
    box = element.find("bndbox")
    if box is None:
        findings.add("xml-object", record, f"{printable(name)} has no <bndbox>")
        return None
    texts = [_text(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = map(float, texts)
    except ValueError:
        findings.add("xml-object", record, f"the corners of {printable(name)} are {texts}")
        return None
    corners = (x0, y0, x1, y1)
    if not all(map(math.isfinite, corners)) or x1 < x0 or y1 < y0:
        what = f"the corners of {printable(name)} are {[float(x) for x in corners]}"
        findings.add("xml-object", record, what)
        return None
    # Some programs write false or Unspecified.
    is_difficult = _text(element, "difficult").lower() in ("1", "true", "yes")
    return AnnotatedObject(name, corners, is_difficult, record, number)


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return the recorded width and height; None if there are none, so the image tells them."""
    texts = [_text(root, f"size/{tag}") for tag in ("width", "height")]
    if not all(text.isdecimal() and len(text) < 8 and int(text) > 0 for text in texts):
        return None
    return int(texts[0]), int(texts[1])
