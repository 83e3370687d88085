"""Samples from disk: what fits becomes requests, what does not is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import Preprocess
from edgeserve.errors import DataError
from edgeserve.evaluate import load_labelled, load_samples
from edgeserve.evaluate.made_up import made_up_samples
from edgeserve.tensors import Interface, TensorSpec

IMAGE = Interface(
    (TensorSpec("image", "FP32", ("n", 3, 4, 4)),), (TensorSpec("y", "FP32", ("n", 2)),), 8
)
PAIR = Interface(
    (TensorSpec("a", "FP32", (1, 2)), TensorSpec("b", "INT64", (1,))),
    (TensorSpec("y", "FP32", (1, 2)),),
)
HOW = Preprocess(4, 4)


def photos(folder: Path, count: int) -> None:
    from PIL import Image

    for i in range(count):
        Image.new("RGB", (6 + i, 5), (10 * i, 0, 0)).save(folder / f"{i:02}.png")


def test_a_folder_of_images_becomes_requests(tmp_path: Path) -> None:
    photos(tmp_path, 3)
    samples = load_samples(tmp_path, IMAGE, HOW)
    assert [s["image"].shape for s in samples] == [(1, 3, 4, 4)] * 3
    assert samples[2]["image"][0, 0, 0, 0] == 20.0


def test_take_spreads_and_leave_is_the_rest(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.arange(10 * 48, dtype=np.float32).reshape(10, 3, 4, 4))
    samples = load_samples(tmp_path / "x.npz", IMAGE, None)
    taken, left = samples.take(4), samples.leave(4)
    firsts = sorted(float(s["image"].flat[0]) / 48 for part in (taken, left) for s in part)
    assert firsts == list(range(10))
    assert [float(s["image"].flat[0]) / 48 for s in taken] == [0, 2, 5, 7]


def test_models_with_several_inputs_take_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones((5, 2), np.float32), b=np.arange(5))
    samples = load_samples(tmp_path / "x.npz", PAIR, None)
    assert samples[3]["a"].shape == (1, 2)
    assert samples[3]["b"].tolist() == [3]
    np.save(tmp_path / "x.npy", np.ones((5, 2), np.float32))
    with pytest.raises(DataError, match="the model has 2 inputs"):
        load_samples(tmp_path / "x.npy", PAIR, None)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3, 4, 4), np.float32))
    first = load_samples(tmp_path / "x.npy", IMAGE, None).sha256
    assert load_samples(tmp_path / "x.npy", IMAGE, None).sha256 == first
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 4, 4), np.float32))
    assert load_samples(tmp_path / "x.npy", IMAGE, None).sha256 != first


def test_a_csv_lists_labelled_images(tmp_path: Path) -> None:
    photos(tmp_path, 2)
    (tmp_path / "labels.csv").write_text("file,label\n00.png,1\n01.png,cat\n")
    samples = load_labelled(tmp_path / "labels.csv", IMAGE, HOW, ["dog", "bird", "cat"])
    assert samples.labels == [1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\n", "lists no samples"),
        ("file,label\nabsent.png,1\n", "do not exist"),
        ("file,label\n00.png,llama\n", "'llama' is neither"),
        ("file,label\n00.png\n", "without file and label"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    photos(tmp_path, 1)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        load_labelled(tmp_path / "labels.csv", IMAGE, HOW, None)
    assert words in str(caught.value)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"a\.jpg is not a readable image"):
        load_samples(tmp_path, IMAGE, HOW)


def test_made_up_samples_are_marked_and_repeatable() -> None:
    a, b = made_up_samples(PAIR, 3), made_up_samples(PAIR, 3)
    assert a.random
    assert all(np.array_equal(x["a"], y["a"]) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("labels", [np.full(3, 2.7), np.array(["a", "b", "c"]), np.full(3, np.nan)])
def test_labels_that_are_no_class_indexes_are_not_made_such(
    tmp_path: Path, labels: np.ndarray
) -> None:
    x, y = TensorSpec("x", "FP32", ("n", 2)), TensorSpec("y", "FP32", ("n", 5))
    interface = Interface((x,), (y,), max_batch=32)
    np.savez(tmp_path / "e.npz", x=np.zeros((3, 2), np.float32), label=labels)
    assert load_samples(tmp_path / "e.npz", interface, None).labels is None
    with pytest.raises(DataError, match="no array 'label' of class indexes"):
        load_labelled(tmp_path / "e.npz", interface, None, None)
