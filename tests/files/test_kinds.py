"""Files that are given in the place of weights are recognised by their content, not by a name."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from groupdetr.files.kinds import holds_weights, recognise

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 173000000\n"


def image(format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format)
    return file.getvalue()


def zipped(**contents: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


def numpy_archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


def torch_file(**options: object) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def torchscript() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


KINDS = {
    "an empty file": b"",
    "a Git LFS pointer": POINTER.format("4d7a" * 16).encode(),
    "a web page": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "an XML file": b'<?xml version="1.0"?><annotation></annotation>',
    "a JSON file": b'{"error": "not found"}',
    "an annotation file": json.dumps({"images": [], "annotations": []}).encode(),
    "a configuration without weights": b'{"model_type": "conditional_detr"}',
    "the index of weights": b'{"metadata": {}, "weight_map": {"a": "model-00001.safetensors"}}',
    "a text file": "weights of a detector, naïve\n".encode(),
    "an image": image("PNG"),
    "a video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "a zip archive": zipped(**{"checkpoints/weights.pth": b"x" * 100}),
    "a tar archive": tar(),
    "a compressed archive": b"\x1f\x8b\x08\0" + bytes(20),
    "an archive of numpy arrays": numpy_archive(),
    "a TorchScript archive": torchscript(),
    "a program of torch.export": zipped(**{"best/archive_format": b"pt2"}),
    "an OpenVINO model": b'<?xml version="1.0"?>\n<net name="graph" version="11">\n</net>',
    "a Keras model": zipped(**{"model.weights.h5": b"x", "config.json": b"{}"}),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:\xe6",
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3" + bytes(20),
    "a GGUF file": b"GGUF\x03\0\0\0" + bytes(20),
    "a PDF document": b"%PDF-1.7\n%\xe2\xe3",
    "an archive that unpacks to more than 100 times its size": bomb(),
    "a file that is damaged: its end is missing": torch_file()[:-100],
}


@pytest.mark.parametrize("file_name", ["weights.pth", "model.safetensors", "photo.jpg"])
def test_a_file_is_recognised_by_its_content(file_name: str, tmp_path: Path) -> None:
    path = tmp_path / file_name
    for name, content in KINDS.items():
        path.write_bytes(content)
        kind = recognise(path)
        assert kind is not None, name
        assert kind.name.startswith(name), name
        assert kind.remedy, name


def test_images_are_recognised(tmp_path: Path) -> None:
    for format in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"):
        (tmp_path / "x").write_bytes(image(format))
        kind = recognise(tmp_path / "x")
        assert kind is not None, format
        assert kind.name == "an image", format


@pytest.mark.parametrize("end", ["", "\r"])
def test_a_pointer_says_how_large_the_file_is(end: str, tmp_path: Path) -> None:
    """Also one that Windows has given other line ends."""
    text = POINTER.format("0" * 64).replace("\n", f"{end}\n")
    (tmp_path / "x.pth").write_bytes(text.encode())
    kind = recognise(tmp_path / "x.pth")
    assert kind is not None
    assert "173000000 bytes" in kind.name


def test_weights_of_every_container_are_not_mistaken_for_something_else(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    contents = [torch_file(), torch_file(_use_new_zipfile_serialization=False)]
    contents += [pickle.dumps({"model": {"a": np.ones(2)}}, protocol) for protocol in range(6)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.pth").write_bytes(content)
    for path in tmp_path.iterdir():
        assert recognise(path) is None, path
    assert holds_weights(tmp_path / "a.safetensors")
    assert holds_weights(tmp_path / "0.pth")


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such files")
def test_what_may_never_end_is_recognised_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        kind = recognise(path)
        assert kind is not None
        assert kind.name == "a device or a pipe"
