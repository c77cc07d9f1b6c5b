"""A split is divided into train and val so that both have all classes in equal shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from groupdetr.data.coco import read_split
from groupdetr.data.holdout import select_stratified, split_holdout
from groupdetr.data.records import CocoSplit
from tests.data.conftest import Sample


def read(sample: Sample) -> CocoSplit:
    root = sample.save()
    return read_split(root / "train.json", root / "images", "train")


def test_the_seed_selects_the_held_out_images_and_no_image_is_lost(sample: Sample) -> None:
    record = read(sample).records[0]
    names = [f"{number}.jpg" for number in range(50)]
    records = tuple(replace(record, file_name=name) for name in names)
    split = replace(read(sample), records=records)

    def held_out(seed: int) -> tuple[str, ...]:
        train, val = split_holdout(split, 0.2, seed)
        assert (train.name, len(train), val.name, len(val)) == ("train", 40, "val", 10)
        assert {record.file_name for record in train.records + val.records} == set(names)
        return tuple(record.file_name for record in val.records)

    assert held_out(1) == held_out(1)
    assert len({held_out(seed) for seed in range(5)}) == 5


@pytest.mark.parametrize("images", [0, 1, 2])
def test_the_smallest_splits_can_be_divided(images: int, sample: Sample) -> None:
    split = read(sample)
    split = replace(split, records=split.records[:images])
    train, val = split_holdout(split, 0.2, seed=0)
    assert (len(train), len(val)) == {0: (0, 0), 1: (1, 0), 2: (1, 1)}[images]


def test_val_has_its_share_of_every_class_and_of_the_images_without_objects(
    sample: Sample,
) -> None:
    """Images 0 and 1 have cats, image 0 a dog, too; image 3 has no object."""
    sample.train["annotations"] = sample.train["annotations"][:3]
    split = read(sample)
    copies = {0: 10, 1: 30, 2: 20}
    records = [split.records[index] for index, count in copies.items() for _ in range(count)]
    train, val = split_holdout(replace(split, records=tuple(records)), 0.2, seed=0)
    for name, count in (("0.jpg", 2), ("1.jpg", 6), ("2.jpg", 4)):
        assert sum(record.file_name == name for record in val.records) == count
    assert len(train) == 48


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    images=st.integers(2, 60),
    num_classes=st.integers(1, 12),
    density=st.floats(0.02, 0.7),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_every_class_remains_in_train_and_common_ones_are_in_val(
    images: int, num_classes: int, density: float, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    classes = (rng.random((images, num_classes)) < density).astype(np.int64)
    number = max(1, round(share * images))
    is_val = select_stratified(csr_array(classes), number, rng.permutation(images))
    assert is_val.sum() == number
    total = classes.sum(0)
    in_val = classes[is_val].sum(0)
    # An image may be the only one of several classes, so val may have to take the last of one.
    unique = (classes[:, total == 1].any(1)).sum()
    if number <= images - unique - num_classes:
        assert (in_val[total > 0] < total[total > 0]).all()
    # Each class takes one image of val, so there may be too few for all of them.
    if number >= num_classes:
        assert (in_val[total >= 2 * num_classes] >= 1).all()


def test_shares_of_many_classes_are_nearly_equal() -> None:
    """With random images, the share of a class in val is between 0.09 and 0.33."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, 41)
    classes = (rng.random((2000, 40)) < frequency).astype(np.int64)
    order = rng.permutation(2000)
    is_val = select_stratified(csr_array(classes), 400, order)
    shares = classes[is_val].sum(0) / classes.sum(0)
    assert np.abs(shares - 0.2).max() < 0.02
    random_shares = classes[order[:400]].sum(0) / classes.sum(0)
    assert np.abs(random_shares - 0.2).max() > 0.08
