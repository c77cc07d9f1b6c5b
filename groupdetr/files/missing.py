"""Describes arguments that should be paths, but name no file and no folder."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from groupdetr.files.kinds import SPECIAL
from groupdetr.files.published_weights import address_of_published

# The beginning of an address. A path that was made of it has one slash of two.
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,3}", re.IGNORECASE)
STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp", "rtp", "srt")
MAX_NAMES_COMPARED = 2000  # in one folder
MAX_NAME_LENGTH = 255  # of a file
# The name of a repository on the Hugging Face hub: its owner and its name.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def describe_missing(argument: str | os.PathLike[str]) -> tuple[str, str]:
    """Return what an argument without a file or folder is, and a remedy: what to do or type.

    Either text is empty if nothing is known besides that there is no such path.
    """
    text = os.fspath(argument)
    scheme = ADDRESS.match(text)
    if scheme is not None and scheme[1].lower() in STREAMS:
        return (
            "this is the address of a video stream, and not a file on this machine",
            "save its images as files, for example: ffmpeg -i ADDRESS images/%06d.jpg",
        )
    if scheme is not None and scheme[1].lower() == "file":
        return "this is an address and not a path", f"pass {text[scheme.end() - 1 :]}"
    if scheme is not None:
        return (
            "this is an address on the internet (URL), and not a file on this machine",
            "download the file, and pass its path",
        )
    if os.path.exists(text):  # It is neither a file nor a folder.
        return "this is a device or a pipe, and not a file", SPECIAL.remedy
    if os.path.islink(text):
        return "this is a link that leads nowhere", "correct or remove the link"
    similar = similar_path(text)
    if similar:
        return "", f"did you mean {similar}?"
    address = address_of_published(text)
    if address:
        return (
            "this is the name of a published file of weights, which is not there",
            f"download it, and pass its path: curl -o {os.path.basename(text)} {address}",
        )
    if HUB_NAME.fullmatch(text) and "." not in text.partition("/")[0]:
        return (
            "",
            "check the path; or if this is a name on the Hugging Face hub, download it "
            f"(hf download {text} --local-dir FOLDER), and pass the folder",
        )
    return "", ""


def as_typed(argument: str | os.PathLike[str]) -> str:
    """Return an argument as the user typed it: `Path` makes one of the two slashes of an address.

    >>> as_typed(Path("https://example.com/a.zip"))
    'https://example.com/a.zip'
    """
    text = os.fspath(argument)
    return ADDRESS.sub(r"\1://", text) if ADDRESS.match(text) else text


def similar_path(text: str) -> str:
    """Return the existing path that a mistyped one was probably meant to be, "" if none is near."""
    cleaned = text.strip().strip("'\"")
    for variant in (cleaned, os.path.expanduser(cleaned), cleaned.replace("\\", "/")):
        if variant and variant != text and os.path.exists(variant):
            return variant
    # Every part is corrected by the names in the folder that the parts before it lead to.
    path = Path(cleaned)
    corrected = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        if os.path.exists(corrected / part):
            corrected /= part
            continue
        if len(part) > MAX_NAME_LENGTH:
            return ""
        try:
            names = sorted(os.listdir(corrected))[:MAX_NAMES_COMPARED]
        except OSError:
            return ""
        by_lower_case = {name.lower(): name for name in names}
        similar = get_close_matches(part.lower(), by_lower_case, n=1, cutoff=0.75)
        if not similar:
            return ""
        corrected /= by_lower_case[similar[0]]
    return str(corrected) if cleaned else ""
