"""A batch holds the padded images and survives the way from a worker to the GPU."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groupdetr.data import batch as batch_module
from groupdetr.data.batch import ImageBatch, collate, normalise, shared_batch
from groupdetr.structures.images import Images
from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.targets import Target

SHAPES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4)


def samples(
    shapes: Sequence[tuple[int, int]], channels_last: bool = True, masks: bool = False
) -> list[tuple[Tensor, Target, int]]:
    """Images of random pixels. The first has no object, the second one object, and so on."""
    result = []
    for objects, (height, width) in enumerate(shapes):
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        if not channels_last:
            pixels = pixels.contiguous()
        cropped = None
        if masks:
            cropped = CroppedMasks.from_dense(torch.rand(objects, height, width) < 0.3)
        target = Target(torch.arange(objects), torch.rand(objects, 4), cropped)
        result.append((pixels, target, 10 + objects))
    return result


def assert_same(batch: ImageBatch, other: ImageBatch) -> None:
    assert torch.equal(batch.pixels, other.pixels)
    assert torch.equal(batch.sizes, other.sizes)
    assert batch.indices == other.indices
    for target, other_target in zip(batch.targets, other.targets, strict=True):
        assert torch.equal(target.labels, other_target.labels)
        assert torch.equal(target.boxes, other_target.boxes)
        assert (target.masks is None) == (other_target.masks is None)
        if target.masks is not None and other_target.masks is not None:
            assert torch.equal(target.masks.pixels, other_target.masks.pixels)
            assert torch.equal(target.masks.windows, other_target.masks.windows)


def test_images_are_normalised_and_their_padding_is_zero_after_that() -> None:
    small = torch.full((3, 4, 6), 200, dtype=torch.uint8)
    large = torch.full((3, 8, 5), 10, dtype=torch.uint8)
    padded = Images.from_list([small, large])
    images = normalise(padded.pixels, padded.padding)
    assert images.pixels.shape == (2, 3, 8, 6)
    expected = (200 / 255 - 0.485) / 0.229
    torch.testing.assert_close(images.pixels[0, 0, :4], torch.full((4, 6), expected))
    assert (images.pixels[0, :, 4:] == 0).all()
    assert images.padding[0, 4:].all()
    assert not images.padding[0, :4].any()


@given(shapes=SHAPES, channels_last=st.booleans())
def test_a_batch_holds_the_padded_images_and_converts_them(
    shapes: list[tuple[int, int]], channels_last: bool
) -> None:
    input_samples = samples(shapes, channels_last)
    expected = Images.from_list([pixels for pixels, _, _ in input_samples])
    batch = collate(input_samples)
    assert batch.indices == [index for _, _, index in input_samples]
    assert torch.equal(batch.pixels, expected.pixels)
    assert batch.pixels.permute(0, 2, 3, 1).is_contiguous()
    images = batch.images(torch.device("cpu"))
    assert torch.equal(images.padding, expected.padding)
    assert torch.equal(images.pixels, normalise(expected.pixels, expected.padding).pixels)
    assert images.padded == expected.padded == bool(expected.padding.any())
    assert images.pixels.is_contiguous()
    # The bytes of the batch are not changed, so it can be converted again.
    assert torch.equal(batch.pixels, expected.pixels)


def test_a_batch_can_be_pickled() -> None:
    batch = collate(samples([(4, 6), (8, 5), (2, 2)], masks=True))
    unpickled = pickle.loads(pickle.dumps(batch))
    assert_same(unpickled, batch)
    unpickled.targets[2].boxes += 1  # its tensors can be written


def test_only_the_pixels_are_sent_as_shared_memory() -> None:
    """Each tensor in shared memory needs a file descriptor, and their number is limited."""
    written = io.BytesIO()
    ForkingPickler(written).dump(collate(samples([(4, 6)] * 8, masks=True)))
    assert written.getvalue().count(b"rebuild_tensor") == 1


def test_a_worker_collates_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shared_batch(2, 5, 7).is_shared()
    monkeypatch.setattr(batch_module, "get_worker_info", lambda: "a worker")
    pixels = collate(samples([(4, 6), (8, 5)])).pixels
    assert pixels.is_shared()
    assert pixels.untyped_storage().nbytes() == 2 * 8 * 6 * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
@pytest.mark.parametrize("masks", [False, True])
def test_a_pinned_batch_is_the_same_and_all_of_its_tensors_are_pinned(masks: bool) -> None:
    batch = collate(samples([(4, 6), (8, 5), (2, 2)], masks=masks))
    pinned = batch.pin_memory()
    assert_same(pinned, batch)
    assert pinned.pixels.stride() == batch.pixels.stride()
    tensors = [pinned.pixels, pinned.sizes]
    for target in pinned.targets:
        tensors += [x for x in (target.labels, target.boxes) if x.numel()]
        if target.masks is not None:
            tensors.append(target.masks.pixels)
    assert all(tensor.is_pinned() for tensor in tensors)
