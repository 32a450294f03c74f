"""Every way in which a published set, its labels and its files may not fit together is one sentence."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from tests.data.fake_suites import Make, cifar10, cifar100, flowers, imagenet, pets, put, read, vtab
from vitrail.errors import UserError


def replaced(path: str, old: str, new: str) -> Make:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return change


def removed(path: str) -> Make:
    return lambda root: (root / path).unlink()


def label_out_of_range(root: Path) -> None:
    content = np.fromfile(root / "test_batch.bin", np.uint8)
    content[0] = 10
    content.tofile(root / "test_batch.bin")


def pickled(root: Path) -> None:
    for file in root.iterdir():
        file.unlink()
    (root / "data_batch_1").write_bytes(pickle.dumps({}))


def cut(root: Path) -> None:
    file = root / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-1])


def list_of_flowers(name: str, numbers: object) -> Make:
    """One list of setid.mat, or the labels, replaced."""

    def change(root: Path) -> None:
        file = root / ("imagelabels.mat" if name == "labels" else "setid.mat")
        lists = {key: value for key, value in scipy.io.loadmat(file).items() if not key.startswith("__")}
        scipy.io.savemat(file, lists | {name: numbers})

    return change


def without_label(file: str, label: int, instead: int, labels: int) -> Make:
    def change(root: Path) -> None:
        content = np.fromfile(root / file, np.uint8).reshape(-1, labels + 3072)
        content[content[:, labels - 1] == label, labels - 1] = instead
        content.tofile(root / file)

    return change


def latin(path: str) -> Make:
    def change(root: Path) -> None:
        (root / path).write_bytes((root / path).read_bytes() + "caf\xe9".encode("latin-1"))

    return change


def flat(root: Path) -> None:
    imagenet(root, True)


SOLUTION = "LOC_val_solution.csv"
FIRST = "images/train800val200/000000.jpg"


@pytest.mark.usefixtures("small_suites")
@pytest.mark.parametrize(
    ("name", "make", "fault", "sentence"),
    [
        (
            "imagenet",
            imagenet,
            lambda root: (root / "val" / "n02102040").rename(root / "val" / "dog"),
            "dog is not named as",
        ),
        (
            "imagenet",
            imagenet,
            lambda root: shutil.rmtree(root / "train" / "n02102040"),
            "has the class n02102040, which",
        ),
        ("imagenet", imagenet, lambda root: shutil.rmtree(root / "val"), "has no folder val/"),
        ("imagenet", imagenet, lambda root: shutil.rmtree(root / "val" / "n01443537"), "val has not: unpack val again"),
        ("imagenet", imagenet, lambda root: (root / "val" / "x.png").touch(), "x.png lies beside the class folders"),
        ("imagenet", imagenet, lambda root: (root / "val" / "n09999999").mkdir(), "n09999999 holds no pictures"),
        ("imagenet", imagenet, lambda root: (root / "train" / "n09999999").mkdir(), "n09999999 holds no pictures"),
        ("imagenet", flat, removed(SOLUTION), f"no {SOLUTION}"),
        ("imagenet", flat, lambda root: [shutil.rmtree(root / "train"), (root / "train").mkdir()], "no class folders"),
        ("imagenet", flat, removed("val/ILSVRC2012_val_00000002.JPEG"), "lists 1 pictures that"),
        (
            "imagenet",
            flat,
            lambda root: put(root / "val" / "x.JPEG"),
            "holds 1 pictures that LOC_val_solution.csv does",
        ),
        ("imagenet", flat, replaced(SOLUTION, "_00000002,", "_00000001,"), "00000002.JPEG: take both from the same"),
        ("imagenet", flat, replaced(SOLUTION, "PredictionString", "Prediction"), "lacks the column PredictionString"),
        ("imagenet", flat, replaced(SOLUTION, "n01440764 1 2 3 4 ", ""), "line 2, says '' of the picture 'ILSVRC"),
        ("imagenet", flat, replaced(SOLUTION, ",n01440764 1 2 3 4 ", ""), "line 2, says '' of the picture 'ILSVRC"),
        ("imagenet", flat, replaced(SOLUTION, "n01440764", "dog"), "says 'dog 1 2 3 4' of the picture"),
        ("imagenet", flat, replaced(SOLUTION, "n01440764", "x" * 200_000), "is not a CSV file"),
        ("imagenet", flat, latin(SOLUTION), f"{SOLUTION} is not UTF-8 text"),
        ("imagenet", flat, lambda root: (root / SOLUTION).write_text(""), "lacks the column ImageId"),
        ("cifar10", cifar10, label_out_of_range, "test_batch.bin has the label 10, and batches.meta.txt 2 names"),
        ("cifar10", cifar10, pickled, "the one for Python is pickled"),
        ("cifar10", cifar10, cut, "no whole number of records of 3073 bytes"),
        ("cifar10", cifar10, lambda root: (root / "test_batch.bin").write_bytes(b""), "has 0 entries, not the 12 that"),
        ("cifar100", cifar100, lambda root: (root / "train.bin").write_bytes(bytes(3074 * 11)), "has 11 entries, not"),
        ("cifar10", cifar10, without_label("data_batch_3.bin", 1, 0, 1), "data_batch_3.bin lacks the class 1, of 2"),
        ("cifar100", cifar100, without_label("test.bin", 2, 1, 2), "test.bin lacks the class 2, of 3"),
        ("cifar10", cifar10, replaced("batches.meta.txt", "car\n", "car\nboat\n"), "has 3 names, not 2"),
        ("cifar10", cifar10, latin("batches.meta.txt"), "batches.meta.txt is not UTF-8 text"),
        ("cifar100", cifar100, latin("fine_label_names.txt"), "fine_label_names.txt is not UTF-8 text"),
        (
            "pets",
            pets,
            replaced("annotations/test.txt", "dog_breed_AA_3 1 ", "dog_breed_AA_3 2 "),
            "the classes 1 and 2",
        ),
        ("pets", pets, replaced("annotations/test.txt", " 1 1\n", "\n"), "has 2 words, not 4"),
        ("pets", pets, removed("annotations/trainval.txt"), "trainval.txt cannot be read"),
        ("pets", pets, latin("annotations/test.txt"), "test.txt is not UTF-8 text"),
        ("pets", pets, replaced("annotations/test.txt", "dog_breed_AA_3 1 1 1\n", ""), "has 36 entries, not the 37"),
        (
            "pets",
            pets,
            replaced("annotations/test.txt", "dog_breed_AA_3 1 ", "dog_breed_ZZ_3 38 "),
            "lacks the class 1",
        ),
        ("pets", pets, replaced("annotations/test.txt", "dog_breed_AA_3 1 ", "dog_breed_ZZ_3 1 "), "38 names for 37"),
        (
            "pets",
            pets,
            replaced("annotations/trainval.txt", "dog_breed_AA_2 ", "dog_breed_AA_1 "),
            "1 pictures of pets are listed more than once",
        ),
        ("pets", pets, removed("images/dog_breed_AA_3.jpg"), "1 pictures of pets are not there, such as"),
        (
            "pets",
            pets,
            replaced("annotations/test.txt", "dog_breed_AA_3", "dog_breed_AA_2"),
            "both learned from and judged",
        ),
        ("flowers102", flowers, list_of_flowers("tstid", [range(206, 308)]), "lists the picture 307 in tstid"),
        ("flowers102", flowers, list_of_flowers("tstid", [range(102)]), "lists the picture 0 in tstid"),
        (
            "flowers102",
            flowers,
            list_of_flowers("tstid", [range(102, 204)]),
            "102 pictures of flowers102 are both learned from and judged by",
        ),
        (
            "flowers102",
            flowers,
            list_of_flowers("valid", [range(1, 103)]),
            "102 pictures of flowers102 are listed more",
        ),
        ("flowers102", flowers, list_of_flowers("tstid", []), "setid.mat has 0 entries, not the 102"),
        ("flowers102", flowers, list_of_flowers("valid", [range(103, 204)]), "setid.mat has 101 entries, not the 102"),
        ("flowers102", flowers, list_of_flowers("trnid", ["a"] * 102), "is not one of whole numbers"),
        ("flowers102", flowers, list_of_flowers("trnid", [[0.5] * 102]), "is not one of whole numbers"),
        ("flowers102", flowers, list_of_flowers("trnid", [[np.nan] * 102]), "is not one of whole numbers"),
        ("flowers102", flowers, list_of_flowers("labels", [np.arange(306) % 102]), "imagelabels.mat has the class 0"),
        (
            "flowers102",
            flowers,
            list_of_flowers("labels", [np.arange(306) % 101 + 1]),
            "mat lacks the class 102, of 102",
        ),
        ("flowers102", flowers, lambda root: (root / "setid.mat").write_bytes(b"MATLAB"), "setid.mat gives no trnid"),
        ("flowers102", flowers, removed("setid.mat"), "setid.mat cannot be read (No such file or directory)"),
        (
            "vtab-1k",
            vtab,
            replaced("test.txt", "images/test/000003.jpg 3", "images/test/000003.jpg 6"),
            "label 6, and dmlab has 6",
        ),
        ("vtab-1k", vtab, replaced("train800val200.txt", FIRST + " 0\n", ""), "has 19 entries, not the 20"),
        (
            "vtab-1k",
            vtab,
            replaced("train800.txt", "images/train800/000000.jpg 0\n", ""),
            "has 15 entries, not the 16",
        ),
        (
            "vtab-1k",
            vtab,
            replaced("train800val200.txt", FIRST + " 0", FIRST + " 1"),
            "has other labels than train800.t",
        ),
        (
            "vtab-1k-search",
            vtab,
            replaced("val200.txt", "003.jpg 1", "003.jpg 2"),
            "has other labels than train800.txt",
        ),
        ("vtab-1k-search", vtab, replaced("train800.txt", "800/000001", "800/000000"), "are listed more than once"),
        (
            "vtab-1k",
            vtab,
            lambda root: (root / "test.txt").write_text("# none\n"),
            "no pictures of vtab-1k to be judged",
        ),
        ("vtab-1k", vtab, latin("test.txt"), "test.txt is not UTF-8 text"),
        ("vtab-1k", vtab, replaced("test.txt", "000003.jpg 3", "000003.jpg " + "9" * 5000), "dmlab has 6 classes"),
        ("vtab-1k", vtab, removed("images/test/000003.jpg"), "1 pictures of vtab-1k are not there, such as"),
        (
            "vtab-1k",
            vtab,
            replaced("test.txt", "images/test/000003.jpg", "images/test/../train800val200/000003.jpg"),
            "both learned from",
        ),
        ("vtab-1k", vtab, lambda root: root.rename(root.parent / "dogs"), "There is no folder"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, make: Make, fault: Make, sentence: str) -> None:
    root = tmp_path / ("dmlab" if name.startswith("vtab-1k") else name)
    make(root)
    fault(root)
    with pytest.raises(UserError) as error:
        read(name, root, tmp_path)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pictures").exists()
