"""Obtains the dataset and checks its sha256.

A download is kept in a cache that all clones share: LOTTERY_CACHE, by default ~/.cache/lottery.
An archive is unpacked into a temporary folder (TMPDIR).

Reads   params.yaml: data
Writes  data/dataset/: images.npy, labels.npy, dataset.json
"""

import sys

from lottery.artifacts import files
from lottery.datasets import loading, pinning
from lottery.datasets.dataset import write_dataset
from lottery.errors import say
from lottery.params import check_fit
from stages import command


def main(stage: command.Stage) -> None:
    """The stage."""
    params = stage.params
    pinning.check_seen(params.data)
    images, labels, facts = dataset = loading.obtain(params.data)
    check_fit(params, dataset.size)
    in_both = dataset.in_both([dataset.split(params.data, seed) for seed in params.seeds])
    if in_both:
        say(
            f"fetch: {in_both:,} of the {facts['test']:,} test {dataset.noun} are training or "
            f"validation {dataset.noun} too, value for value",
            sys.stderr,
        )
    with files.folder_written_whole(files.DATASET, checksums=True) as folder:
        write_dataset(folder, images, labels, facts)
    say(
        f"fetch: {facts['title']}: {dataset.training:,} {dataset.noun} for training and "
        f"validation, {facts['test']:,} for testing"
    )


if __name__ == "__main__":
    command.main("fetch")
