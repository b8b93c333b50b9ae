"""Obtains the dataset and checks its sha256.

A download is kept in a cache that all clones share: LOTTERY_CACHE, by default ~/.cache/lottery.
An archive is unpacked into a temporary folder (TMPDIR).

Reads   params.yaml: data
Writes  data/dataset/: images.npy, labels.npy, dataset.json
"""

import sys
from functools import partial

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
    for seed in params.seeds:
        dataset.split(params.data, seed)  # a class that is too small is named now
    shape, warn = facts["image_shape"], partial(say, file=sys.stderr)
    if repeated := facts.get("repeated"):
        shared = "so that parts of a split may share them"
        warn(f"fetch: {repeated:,} {dataset.noun} repeat others, value for value, {shared}")
    if known := facts.get("test_in_training"):
        test = f"{known:,} of the {facts['test']:,} test {dataset.noun}"
        warn(f"fetch: {test} are training or validation {dataset.noun} too")
    if len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2] > 4:
        first = "channels first? np.moveaxis(x, 1, -1) puts them last"
        warn(f"fetch: shape {shape} is taken as height, width, channels; {first}")
    with files.folder_written_whole(files.DATASET, checksums=True) as folder:
        write_dataset(folder, images, labels, facts)
    say(
        f"fetch: {facts['title']}: {dataset.training:,} {dataset.noun} for training and "
        f"validation, {facts['test']:,} for testing"
    )


if __name__ == "__main__":
    command.main("fetch")
