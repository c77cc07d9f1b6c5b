"""What a step sees depends on the seed and the step alone."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groupdetr.data import batch as batches_module
from groupdetr.data import transforms
from groupdetr.data.batch import (
    Batch,
    Draw,
    Pictures,
    Stream,
    block,
    collate,
    normalised,
    ordered_loader,
    training_loader,
)
from groupdetr.data.findings import RefusedError
from groupdetr.data.formats import load
from groupdetr.data.synthetic import SyntheticConfig, write
from groupdetr.data.transforms import View
from groupdetr.structures.images import Images
from groupdetr.structures.masks import Bitmaps
from groupdetr.structures.targets import Target

SIZES = st.integers(1, 40)


def batches(stream: Stream, rank: int = 0, ranks: int = 1, accumulate: int = 1) -> list[list[Draw]]:
    stream.rank, stream.ranks, stream.accumulate = rank, ranks, accumulate
    return list(stream)


@given(images=SIZES, batch=SIZES, steps=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_epoch_shows_every_picture_once(
    images: int, batch: int, steps: int, seed: int
) -> None:
    draws = [draw for piece in batches(Stream(images, batch, seed, 0, steps)) for draw in piece]
    assert len(draws) == steps * batch
    for epoch in range(len(draws) // images):
        assert sorted(d.index for d in draws[epoch * images : (epoch + 1) * images]) == list(
            range(images)
        )
        assert {d.epoch for d in draws[epoch * images : (epoch + 1) * images]} == {epoch}


@given(images=SIZES, batch=SIZES, start=st.integers(0, 10))
def test_a_stream_continued_is_the_stream(images: int, batch: int, start: int) -> None:
    assert (
        batches(Stream(images, batch, 3, start, 20))
        == batches(Stream(images, batch, 3, 0, 20))[start:]
    )


@given(images=SIZES, share=st.integers(1, 4), ranks=st.integers(1, 4), accumulate=st.integers(1, 3))
def test_processes_and_pieces_together_see_what_one_would(
    images: int, share: int, ranks: int, accumulate: int
) -> None:
    batch = share * ranks * accumulate
    whole = batches(Stream(images, batch, 5, 0, 4))
    parts = [
        batches(Stream(images, batch, 5, 0, 4), rank, ranks, accumulate) for rank in range(ranks)
    ]
    for step, expected in enumerate(whole):
        pieces = [part[step * accumulate + i] for part in parts for i in range(accumulate)]
        assert {len(piece) for piece in pieces} == {share}
        together = sorted((draw.epoch, draw.index) for piece in pieces for draw in piece)
        assert together == sorted((draw.epoch, draw.index) for draw in expected)


@pytest.mark.parametrize(
    "augment", [transforms.training, transforms.jittering, transforms.flipping]
)
def test_augmentation_depends_on_seed_epoch_and_picture_alone(shapes: Path, augment) -> None:  # type: ignore[no-untyped-def]
    records = load(shapes).splits["train"].records
    first, second = (
        Pictures(records, augment(48), seed=1),
        Pictures(records, augment(48), seed=1, cache_bytes=1 << 20),
    )
    torch.manual_seed(1)
    expected = [first[Draw(epoch, 3)] for epoch in range(12)]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    for epoch in reversed(range(12)):
        picture, target, _ = second[Draw(epoch, 3)]
        torch.testing.assert_close(picture, expected[epoch][0], rtol=0, atol=0)
        torch.testing.assert_close(target.boxes, expected[epoch][1].boxes, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)  # dropout draws what it would have drawn
    assert any(not torch.equal(expected[0][0], other[0]) for other in expected[1:])


def test_a_picture_is_drawn_from_a_generator_seeded_by_seed_epoch_and_picture(shapes: Path) -> None:
    """In a way that must not change: a run goes on as it began."""
    seeds: list[int] = []

    def transform(view: View, generator: torch.Generator) -> View:
        seeds.append(generator.initial_seed())
        return view

    pictures = Pictures(load(shapes).splits["train"].records, transform, seed=7)
    for epoch in (0, 5):
        assert pictures[Draw(epoch, 2)]
    assert seeds == [
        int(np.random.SeedSequence((7, epoch, 2)).generate_state(1)[0]) for epoch in (0, 5)
    ]


def test_loading_pictures_seeds_no_gpu(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else dropout there would depend on whether workers load the pictures, or the process that trains."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(0)
    assert seeded, "this is how torch seeds GPUs"
    seeded.clear()
    assert Pictures(load(shapes).splits["train"].records, transforms.training(48))[Draw(1, 3)]
    assert not seeded


def test_what_a_crop_left_without_area_is_no_object(tmp_path: Path) -> None:
    from PIL import Image

    from groupdetr.data.records import Record

    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    boxes = np.array(
        [[50.0, 10, 20, 20], [0, 0, 20, 20], [30, 20, 20, 20]]
    )  # outside, inside, half inside
    ones = np.ones(3)
    record = Record(
        1, tmp_path / "a.png", "a.png", 90, 60, boxes, np.arange(3), ones, ones > 1, (1, 2, 3)
    )
    pictures = Pictures([record], lambda view, _: view.cropped(0, 0, 60, 40))
    _, target, _ = pictures[0]
    assert target.labels.tolist() == [1, 2]
    expected = torch.tensor(
        [[10 / 40, 10 / 60, 20 / 40, 20 / 60], [35 / 40, 30 / 60, 10 / 40, 20 / 60]]
    )
    torch.testing.assert_close(target.boxes, expected)


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_decoded_pictures_are_channels_last_in_memory(shapes: Path, kept: int) -> None:
    """As the fast resize wants them."""
    pictures = Pictures(
        load(shapes).splits["train"].records, transforms.validation(48), cache_bytes=kept
    )
    first, second = pictures.decoded(3), pictures.decoded(3)
    assert first.permute(1, 2, 0).is_contiguous()
    assert torch.equal(first, second)
    assert (first is second) == bool(kept)


@pytest.mark.parametrize(("allowed", "expected"), [(0, 0), (10_000, 6912), (1 << 20, 24 * 6912)])
def test_no_more_of_them_is_kept_than_is_told(shapes: Path, allowed: int, expected: int) -> None:
    """6912 bytes are a picture's."""
    pictures = Pictures(
        load(shapes).splits["train"].records, transforms.validation(48), cache_bytes=allowed
    )
    told = pictures.kept
    for index in range(len(pictures)):
        pictures.decoded(index)
    assert sum(picture.nbytes for picture in pictures.cache.values()) == expected <= told <= allowed


@pytest.mark.parametrize("augment", [transforms.training, transforms.jittering])
def test_boxes_stay_on_their_objects_under_every_augmentation(tmp_path: Path, augment) -> None:  # type: ignore[no-untyped-def]
    """A white rectangle on black: its box can be read off the picture."""
    from PIL import Image

    from groupdetr.data.records import Record

    pixels = np.zeros((60, 90, 3), dtype=np.uint8)
    pixels[20:44, 30:66] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes, ones = np.array([[30.0, 20, 36, 24]]), np.ones(1)
    record = Record(
        1, tmp_path / "a.png", "a.png", 90, 60, boxes, np.zeros(1, np.int64), ones, ones > 1, (1,)
    )
    pictures = Pictures([record], augment(320))
    for epoch in range(40):
        picture, target, _ = pictures[Draw(epoch, 0)]
        rows, columns = (
            (picture[0] > 128).any(1).nonzero(),
            (picture[0] > 128).any(0).nonzero(),
        )  # 128 is padded
        if not len(target):
            assert len(rows) < 3 or len(columns) < 3
            continue
        cx, cy, w, h = target.boxes[0].tolist()
        height, width = picture.shape[1:]
        assert (cx - w / 2) * width == pytest.approx(float(columns.min()), abs=2)
        assert (cx + w / 2) * width == pytest.approx(float(columns.max()) + 1, abs=2)
        assert (cy - h / 2) * height == pytest.approx(float(rows.min()), abs=2)
        assert (cy + h / 2) * height == pytest.approx(float(rows.max()) + 1, abs=2)


def test_pictures_are_normalised_first_and_padded_with_zero_after() -> None:
    small, large = (
        torch.full((3, 4, 6), 200, dtype=torch.uint8),
        torch.full((3, 8, 5), 10, dtype=torch.uint8),
    )
    images = Images.from_list([small, large])
    done = normalised(images.pixels, images.padding)
    assert done.pixels.shape == (2, 3, 8, 6)
    expected = (200 / 255 - 0.485) / 0.229
    torch.testing.assert_close(done.pixels[0, 0, :4], torch.full((4, 6), expected))
    assert (done.pixels[0, :, 4:] == 0).all()
    assert done.padding[0, 4:].all()
    assert not done.padding[0, :4].any()


def test_a_batch_names_its_pictures(shapes: Path) -> None:
    pictures = Pictures(load(shapes).splits["train"].records, transforms.validation(48))
    assert collate([pictures[2], pictures[5]]).indices == [2, 5]


SHAPES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4)


def samples(
    shapes: Sequence[tuple[int, int]], last: bool = True, masks: bool = False
) -> list[tuple[Tensor, Target, int]]:
    """Pictures of noise, channels last as decoders leave them or not, with as many objects as their place."""
    made = []
    for i, (height, width) in enumerate(shapes):
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        target = Target(
            torch.arange(i),
            torch.rand(i, 4),
            Bitmaps.of(torch.rand(i, height, width) < 0.3) if masks else None,
        )
        made.append((pixels if last else pixels.contiguous(), target, 10 + i))
    return made


@given(shapes=SHAPES, last=st.booleans())
def test_a_batch_is_its_pictures_padded_and_becomes_images_of_them(
    shapes: list[tuple[int, int]], last: bool
) -> None:
    pictures = samples(shapes, last)
    expected = Images.from_list([pixels for pixels, _, _ in pictures])
    batch = collate(pictures)
    assert torch.equal(batch.pixels, expected.pixels)
    assert batch.pixels.permute(0, 2, 3, 1).is_contiguous()
    images = batch.images(torch.device("cpu"))
    assert torch.equal(images.padding, expected.padding)
    assert torch.equal(images.pixels, normalised(expected.pixels, expected.padding).pixels)
    assert images.padded == expected.padded == bool(expected.padding.any())
    assert images.pixels.is_contiguous()


def test_normalising_leaves_the_bytes_as_they_are() -> None:
    batch = collate(samples([(4, 6), (8, 5)]))
    before = batch.pixels.clone()
    images = [batch.images(torch.device("cpu")).pixels for _ in range(2)]
    assert torch.equal(*images)
    assert torch.equal(batch.pixels, before)


def assert_same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.sizes, other.sizes)
    assert one.indices == other.indices
    for mine, theirs in zip(one.targets, other.targets, strict=True):
        assert torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.boxes, theirs.boxes)
        assert (mine.masks is None) == (theirs.masks is None)
        if mine.masks is not None and theirs.masks is not None:
            assert torch.equal(mine.masks.pixels, theirs.masks.pixels)
            assert torch.equal(mine.masks.windows, theirs.masks.windows)


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_comes_out_of_a_pickle_as_it_went_in(masks: bool) -> None:
    batch = collate(samples([(4, 6), (8, 5), (2, 2)], masks=masks))
    again = pickle.loads(pickle.dumps(batch))
    assert_same(again, batch)
    again.targets[2].boxes += 1  # they are tensors like any other


@pytest.mark.parametrize("masks", [False, True])
def test_only_pixels_travel_as_a_file(masks: bool) -> None:
    """A tensor in shared memory takes a file descriptor and a message; a large batch would run out of the former."""
    written = io.BytesIO()
    ForkingPickler(written).dump(collate(samples([(4, 6)] * 8, masks=masks)))
    assert written.getvalue().count(b"rebuild_tensor") == 1


def test_a_worker_writes_the_batch_where_the_training_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not block(2, 5, 7).is_shared()
    monkeypatch.setattr(batches_module, "get_worker_info", lambda: "a worker")
    pixels = collate(samples([(4, 6), (8, 5)])).pixels
    assert pixels.is_shared()
    assert pixels.untyped_storage().nbytes() == 2 * 8 * 6 * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
@pytest.mark.parametrize("masks", [False, True])
def test_a_pinned_batch_is_the_same_and_pinned_all_over(masks: bool) -> None:
    batch = collate(samples([(4, 6), (8, 5), (2, 2)], masks=masks))
    pinned = batch.pin_memory()
    assert_same(pinned, batch)
    assert pinned.pixels.stride() == batch.pixels.stride()
    tensors = [
        pinned.pixels,
        pinned.sizes,
        *(x for t in pinned.targets for x in (t.labels, t.boxes) if x.numel()),
    ]
    tensors += [t.masks.pixels for t in pinned.targets if t.masks is not None]
    assert all(x.is_pinned() for x in tensors)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("masks", [False, True])
def test_any_number_of_workers_loads_the_same(shapes: Path, workers: int, masks: bool) -> None:
    records = load(shapes, masks=masks).splits["train"].records
    augment = transforms.jittering if masks else transforms.training

    def batches(workers: int, start: int = 0) -> Iterator[Batch]:
        pictures = Pictures(records, augment(64), seed=3, cache_bytes=1 << 16)
        return iter(training_loader(pictures, Stream(len(records), 4, 3, start, 12), workers))

    expected = list(batches(0))
    assert len(expected) == 12
    for one, other in zip(batches(workers), expected, strict=True):
        assert_same(one, other)
    for one, other in zip(batches(workers, start=9), expected[9:], strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_the_same_error_from_a_worker(tmp_path: Path, workers: int) -> None:
    write(SyntheticConfig(image_size=48, num_classes=3), tmp_path, {"train": 8, "val": 2})
    records = load(tmp_path).splits["train"].records
    picture = records[5].path
    picture.write_bytes(picture.read_bytes()[:200])
    loader = ordered_loader(Pictures(records, transforms.validation(48)), range(8), 2, workers)
    with pytest.raises(RefusedError) as told:
        list(loader)
    assert told.value.finding.code == "truncated-image"
    assert str(picture) in told.value.where
    assert "Traceback" not in str(told.value)


class Signed(Pictures):
    """Each picture says which process loaded it, instead of its index."""

    def __getitem__(self, draw: Any) -> tuple[Tensor, Target, int]:
        return (*super().__getitem__(draw)[:2], os.getpid())


def test_the_next_evaluation_finds_the_workers_of_the_last(shapes: Path) -> None:
    """Where they are not forked, starting them takes seconds."""
    pictures = Signed(load(shapes).splits["val"].records, transforms.validation(48))

    def processes() -> list[int]:
        return [
            index for batch in ordered_loader(pictures, range(6), 1, 2) for index in batch.indices
        ]

    first = processes()
    assert len(set(first)) == 2
    assert os.getpid() not in first
    assert set(processes()) == set(first)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_that_was_broken_off_leaves_nothing_to_the_next(
    shapes: Path, workers: int
) -> None:
    pictures = Pictures(load(shapes).splits["val"].records, transforms.validation(48))

    def loaded(most: int) -> list[list[int]]:
        return [
            batch.indices
            for batch in islice(ordered_loader(pictures, range(1, 6), 2, workers), most)
        ]

    assert loaded(1) == [[1, 2]]
    assert loaded(9) == [[1, 2], [3, 4], [5]]
