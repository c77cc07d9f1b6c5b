"""The second check of a dataset opens only the images that have changed since the first one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.data import checked_images, image_checks
from groupdetr.data.check import CheckReport, check
from tests.data.conftest import Sample


class Checks:
    """Checks of a sample, and which images each of them has opened and hashed."""

    def __init__(self, sample: Sample, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sample, self.cache = sample, cache
        self.opened: list[str] = []
        self.hashed: list[str] = []
        monkeypatch.setattr(image_checks, "MIN_IMAGES", 0)
        monkeypatch.setattr(checked_images, "_RECENT", 0)  # the sample was written a moment ago
        monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(cache))
        check_image, digest = image_checks.check_image, image_checks._digest

        def counted_check(path: Path, size: tuple[int, int], decode: bool) -> str:
            self.opened.append(path.name)
            return check_image(path, size, decode)

        def counted_digest(path: Path) -> str:
            self.hashed.append(path.name)
            return digest(path)

        monkeypatch.setattr(image_checks, "check_image", counted_check)
        monkeypatch.setattr(image_checks, "_digest", counted_digest)

    def __call__(self, cache: bool = True, decode: bool = True) -> CheckReport:
        self.opened.clear()
        self.hashed.clear()
        return check(self.sample.root, decode=decode, cache=cache)

    def files(self) -> list[Path]:
        return [path for path in self.cache.rglob("*") if path.is_file()]


@pytest.fixture
def checks(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checks:
    # 2.jpg is a copy of 0.jpg, 1.jpg is rotated by EXIF, and 3.jpg of val is broken.
    sample.image(2).write_bytes(sample.image(0).read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(sample.image(1), exif=exif)
    sample.image(3).write_bytes(sample.image(3).read_bytes()[:-300])
    sample.save()
    return Checks(sample, tmp_path / "cache", monkeypatch)


def test_the_second_check_has_the_same_findings_and_opens_only_broken_images(
    checks: Checks,
) -> None:
    expected = checks(cache=False).to_json()
    codes = {finding["code"] for finding in [*expected["errors"], *expected["warnings"]]}
    assert {"truncated-image", "duplicate-images", "exif-rotated"} <= codes
    assert checks().to_json() == expected
    assert sorted(checks.opened) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert sorted(checks.hashed) == ["0.jpg", "2.jpg"]
    assert checks().to_json() == expected
    assert (checks.opened, checks.hashed) == (["3.jpg"], [])


def _change_pixels(image: Path) -> None:
    """Write other pixels into the file, of the same number of bytes at the same time."""
    status = image.stat()
    content = bytearray(image.read_bytes())
    content[-20:-10] = bytes(10)
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


def _cut_off(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-300])


def _change_time(image: Path) -> None:
    os.utime(image, ns=(0, 0))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            _change_pixels,
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows has no time of that change"),
        ),
        _cut_off,
        _change_time,
    ],
)
def test_an_image_that_may_have_changed_is_opened_again(
    checks: Checks, change: Callable[[Path], None]
) -> None:
    checks()
    change(checks.sample.image(0))
    found = checks().to_json()
    assert sorted(checks.opened) == ["0.jpg", "3.jpg"]
    assert found == checks(cache=False).to_json()


def test_a_removed_image_and_one_of_another_recorded_size_are_found(checks: Checks) -> None:
    checks()
    checks.sample.image(0).unlink()
    checks.sample.train["images"][2]["width"] = 65
    checks.sample.save()
    codes = [finding.code for finding in checks().errors]
    assert {"missing-file", "size-mismatch"} <= set(codes)


def test_an_image_whose_header_was_read_is_decoded_later(checks: Checks) -> None:
    checks(decode=False)
    checks()
    assert sorted(checks.opened) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    checks(decode=False)
    assert checks.opened == []


def test_a_file_that_changed_a_moment_ago_is_opened_again(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_images, "_RECENT", 3600 * 10**9)
    checks()
    checks()
    assert sorted(checks.opened) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"versions": 1, "images": {}}', b"\xff"])
def test_a_damaged_cache_counts_as_empty(checks: Checks, content: bytes) -> None:
    expected = checks().to_json()
    (file,) = checks.files()
    file.write_bytes(content)
    assert checks().to_json() == expected
    assert len(checks.opened) == 4


def test_the_cache_of_another_version_is_not_used(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks()
    monkeypatch.setattr(checked_images, "__version__", "0.0.0")
    checks()
    assert len(checks.opened) == 4


def test_nothing_is_kept_without_the_cache_or_of_a_small_dataset(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks(cache=False)
    monkeypatch.setattr(image_checks, "MIN_IMAGES", 5)
    checks()
    assert checks.files() == []


def test_progress_ends_with_the_number_of_all_images(sample: Sample) -> None:
    calls: list[tuple[int, int]] = []
    check(sample.save(), on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4)
