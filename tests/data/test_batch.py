"""What a step sees depends on the seed and the step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groupdetr.data import transforms
from groupdetr.data.batch import Draw, Pictures, Stream, collate, normalised
from groupdetr.data.formats import load
from groupdetr.structures import Images

SIZES = st.integers(1, 40)


def batches(stream: Stream, rank: int = 0, ranks: int = 1, accumulate: int = 1) -> list[list[Draw]]:
    stream.rank, stream.ranks, stream.accumulate = rank, ranks, accumulate
    return list(stream)


@given(images=SIZES, batch=SIZES, steps=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_epoch_shows_every_picture_once(images: int, batch: int, steps: int, seed: int) -> None:
    draws = [draw for piece in batches(Stream(images, batch, seed, 0, steps)) for draw in piece]
    assert len(draws) == steps * batch
    for epoch in range(len(draws) // images):
        assert sorted(d.index for d in draws[epoch * images : (epoch + 1) * images]) == list(range(images))
        assert {d.epoch for d in draws[epoch * images : (epoch + 1) * images]} == {epoch}


@given(images=SIZES, batch=SIZES, start=st.integers(0, 10))
def test_a_stream_continued_is_the_stream(images: int, batch: int, start: int) -> None:
    assert batches(Stream(images, batch, 3, start, 20)) == batches(Stream(images, batch, 3, 0, 20))[start:]


@given(images=SIZES, share=st.integers(1, 4), ranks=st.integers(1, 4), accumulate=st.integers(1, 3))
def test_processes_and_pieces_together_see_what_one_would(images: int, share: int, ranks: int, accumulate: int) -> None:
    batch = share * ranks * accumulate
    whole = batches(Stream(images, batch, 5, 0, 4))
    parts = [batches(Stream(images, batch, 5, 0, 4), rank, ranks, accumulate) for rank in range(ranks)]
    for step, expected in enumerate(whole):
        pieces = [part[step * accumulate + i] for part in parts for i in range(accumulate)]
        assert {len(piece) for piece in pieces} == {share}
        together = sorted((draw.epoch, draw.index) for piece in pieces for draw in piece)
        assert together == sorted((draw.epoch, draw.index) for draw in expected)


@pytest.mark.parametrize("augment", [transforms.training, transforms.flipping])
def test_augmentation_depends_on_seed_epoch_and_picture_alone(shapes: Path, augment) -> None:  # type: ignore[no-untyped-def]
    records = load(shapes).splits["train"].records
    first, second = Pictures(records, augment(48), seed=1), Pictures(records, augment(48), seed=1, cache_bytes=1 << 20)
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


def test_boxes_stay_on_their_objects_under_every_augmentation(tmp_path: Path) -> None:
    """A white rectangle on black: its box can be read off the picture."""
    from PIL import Image

    from groupdetr.data.records import Record

    pixels = np.zeros((60, 90, 3), dtype=np.uint8)
    pixels[20:44, 30:66] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes, ones = np.array([[30.0, 20, 36, 24]]), np.ones(1)
    record = Record(1, tmp_path / "a.png", "a.png", 90, 60, boxes, np.zeros(1, np.int64), ones, ones > 1, (1,))
    pictures = Pictures([record], transforms.training(320))
    for epoch in range(40):
        picture, target, _ = pictures[Draw(epoch, 0)]
        rows, columns = (picture[0] > 127).any(1).nonzero(), (picture[0] > 127).any(0).nonzero()
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
    small, large = torch.full((3, 4, 6), 200, dtype=torch.uint8), torch.full((3, 8, 5), 10, dtype=torch.uint8)
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
