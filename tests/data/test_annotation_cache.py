"""A large annotation file is read from the cache the second time, if nothing has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groupdetr.data import annotation_cache, coco
from groupdetr.data.findings import Findings
from groupdetr.data.records import CocoSplit
from tests.data.conftest import Sample
from tests.data.test_mask_rules import with_masks
from tests.data.test_plain_coco import contents


class Reads:
    """The train file of a sample, and how often it was parsed."""

    def __init__(self, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.cache, self.count = root, cache, 0
        monkeypatch.setattr(annotation_cache, "MIN_BYTES", 0)
        monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(cache))
        original = coco._read

        def counted(*args: object) -> object:
            self.count += 1
            return original(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(coco, "_read", counted)

    @property
    def file(self) -> Path:
        return self.root / "train.json"

    def __call__(self, cache: bool = True, masks: bool = True) -> tuple[CocoSplit, Findings]:
        return coco.parse(self.file, self.root / "images", "train", masks, cache=cache)

    def columns(self) -> list[Path]:
        return sorted(self.cache.rglob("*.npy"))


@pytest.fixture
def reads(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reads:
    content = with_masks(sample).train
    content["annotations"][0]["bbox"] = [60, 5, 20, 30]  # gives a warning
    return Reads(sample.save(), tmp_path / "cache", monkeypatch)


def assert_equal(first: tuple[CocoSplit, Findings], second: tuple[CocoSplit, Findings]) -> None:
    assert list(map(contents, first[0].records)) == list(map(contents, second[0].records))
    assert first[0].categories == second[0].categories
    assert list(first[1]) == list(second[1])


def test_the_second_start_reads_the_same_without_parsing(reads: Reads) -> None:
    for masks in (False, True):
        expected = reads(cache=False, masks=masks)
        reads(masks=masks)
        reads.count = 0
        assert_equal(reads(masks=masks), expected)
        assert reads.count == 0
        assert [finding.code for finding in expected[1]] == ["box-clamped"]


def test_records_are_mapped_from_files_from_the_first_start_on(reads: Reads) -> None:
    for _ in range(2):
        boxes = reads()[0].records.table.boxes  # type: ignore[attr-defined]
        while isinstance(boxes.base, np.ndarray):
            boxes = boxes.base
        assert isinstance(boxes, np.memmap)


def test_nothing_is_written_without_the_cache_or_beside_the_data(reads: Reads) -> None:
    before = sorted(reads.root.rglob("*"))
    reads(cache=False)
    assert not reads.cache.exists()
    reads()
    assert reads.columns()
    assert sorted(reads.root.rglob("*")) == before


def _change_content(reads: Reads) -> None:
    """Change one digit, and leave the size and the time of the file."""
    status = reads.file.stat()
    text = reads.file.read_text()
    assert '"area": 600' in text
    reads.file.write_text(text.replace('"area": 600', '"area": 601', 1))
    os.utime(reads.file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _change_time(reads: Reads) -> None:
    os.utime(reads.file, ns=(0, 0))


def _damage(reads: Reads) -> None:
    (boxes,) = (path for path in reads.columns() if path.name == "boxes.npy")
    content = bytearray(boxes.read_bytes())
    content[-1] ^= 1
    boxes.write_bytes(content)


def _cut_off(reads: Reads) -> None:
    (boxes,) = (path for path in reads.columns() if path.name == "boxes.npy")
    boxes.write_bytes(boxes.read_bytes()[:-1])


def _remove(reads: Reads) -> None:
    reads.columns()[0].unlink()


def _spoil_description(reads: Reads) -> None:
    (meta,) = reads.cache.rglob("content.json")
    meta.write_text("[]")


def _link_an_image(reads: Reads) -> None:
    image = reads.root / "images" / "1.jpg"
    image.replace(reads.root / "1.jpg")
    os.symlink(reads.root / "1.jpg", image)


@pytest.mark.parametrize(
    "change",
    [
        _change_content,
        _change_time,
        _damage,
        _cut_off,
        _remove,
        _spoil_description,
        _link_an_image,
    ],
)
def test_an_entry_that_may_be_wrong_is_not_used(
    reads: Reads, change: Callable[[Reads], None]
) -> None:
    reads()
    change(reads)
    reads.count = 0
    assert_equal(reads(), reads(cache=False))
    assert reads.count == 2


def test_a_file_with_an_error_has_no_entry(reads: Reads, sample: Sample) -> None:
    sample.train["annotations"][0]["image_id"] = 77
    sample.save()
    assert [finding.code for finding in reads()[1] if finding.is_error] == ["unknown-image"]
    assert not reads.columns()


def test_a_cache_folder_that_cannot_be_written_does_not_matter(reads: Reads) -> None:
    reads.cache.write_text("a file in the place of the folder")
    assert_equal(reads(), reads(cache=False))


def test_processes_that_start_together_parse_once(reads: Reads) -> None:
    program = (
        "import sys; from pathlib import Path; from groupdetr.data import annotation_cache, coco\n"
        "annotation_cache.MIN_BYTES = 0\n"
        "original = coco._read\n"
        "def read(*args):\n    print('parsed')\n    return original(*args)\n"
        "coco._read = read\n"
        "root = Path(sys.argv[1])\n"
        "coco.parse(root / 'train.json', root / 'images', 'train', cache=True)\n"
    )
    environment = {**os.environ, "HF_HOME": str(reads.cache), "HF_ASSETS_CACHE": str(reads.cache)}
    command = [sys.executable, "-c", program, str(reads.root)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(outputs).count("parsed") == 1
