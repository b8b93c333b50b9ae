"""Obtains the dataset, checks its sha256, and splits it into training, validation and test set.

A download is kept in a cache that all clones share: LOTTERY_CACHE, by default ~/.cache/lottery.

Reads   params.yaml: data
Writes  data/dataset/: {train,validation,test}_{images,labels}.npy, dataset.json
"""

from lottery.artifacts import files
from lottery.datasets import loading
from lottery.params import Params, check_fit
from stages import command


def main(params: Params) -> None:
    dataset = loading.obtain(params.data)
    side = min(dataset.images.shape[1:3])
    check_fit(params, images=dataset.training, classes=dataset.classes, side=side)
    parts, facts = loading.divide(dataset, params.data)
    with files.folder_written_whole(files.DATASET, checksums=True) as folder:
        files.write_dataset(folder, parts, facts)
    counts = ", ".join(f"{len(part.labels):,} {name}" for name, part in parts.items())
    print(f"fetch: {facts['title']}: {counts} images")


if __name__ == "__main__":
    command.main(main)
