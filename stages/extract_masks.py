"""Extracts the masks: bit-packed, checked; density and dead units per layer, the first layer's
inputs, overlap between seeds.

Reads   data/pruned/; params.yaml: seeds, prune, retrain.masks
Writes  data/masks/: per seed and round the mask (seed-N/round-NN.safetensors);
        density.csv, overlap.csv, units.csv, first_layer.csv
"""

from lottery.artifacts import files
from lottery.masks import Mask
from lottery.tickets import mask_tables
from stages import command


def main(stage: command.Stage) -> None:
    """The stage."""
    params = stage.params
    masks: dict[tuple[int, int], Mask] = {}
    effective: dict[tuple[int, int], dict[str, float] | None] = {}
    with files.folder_written_whole(files.MASKS, checksums=True) as folder:
        for seed in params.seeds:
            before: Mask | None = None
            for round_ in range(1, params.prune.rounds + 1):
                path = files.round_file(files.PRUNED, seed, round_)
                if params.retrain.masks and not path.exists():
                    continue  # of the masks from elsewhere, that of a round that nobody asks for
                _, mask, facts = files.read_masked_weights(path)
                if "from" not in facts:
                    expected = params.prune.surviving(mask.shapes, facts["kinds"], round_)
                    mask_tables.check(mask, before, expected, path, params.prune.pattern)
                effective[seed, round_] = facts.pop("effective")
                files.write_mask(files.round_file(folder, seed, round_), mask, facts)
                masks[seed, round_] = before = mask
        mask_tables.write_density(folder / "density.csv", masks, effective)
        mask_tables.write_units(folder / "units.csv", masks)
        mask_tables.write_first_layer(folder / "first_layer.csv", masks)
        mask_tables.write_overlap(folder / "overlap.csv", masks)
    least = min(mask.weights_remaining for mask in masks.values())
    print(f"extract_masks: {len(masks)} masks, down to {least:.2%} of the weights")


if __name__ == "__main__":
    command.main("extract_masks")
