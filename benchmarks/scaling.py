"""How time and disk grow with seeds, rounds and variants: small experiments, each in a fresh clone.

python -m benchmarks.scaling
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from clones import make_clone

VARIANTS = ["ticket", "random_reinit", "random_mask"]
CASES = [(2, 4, 1), (4, 4, 1), (8, 4, 1), (2, 8, 1), (2, 16, 1), (2, 4, 2), (2, 4, 3)]


def size(folder: Path) -> float:
    """Megabytes of a folder's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(
        "| seeds | rounds | variants | runs | seconds | data/ (MB) | run store (MB) | .dvc/cache (MB) | reports/ (MB) |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for seeds, rounds, variants in CASES:
        with tempfile.TemporaryDirectory() as folder:
            clone = make_clone(Path(folder) / "clone")
            clone.change("seeds", list(range(seeds)))
            clone.change("train.iterations", 400)
            clone.change("train.evaluate_every", 50)
            clone.change("prune.rounds", rounds)
            clone.change("retrain.variants", VARIANTS[:variants])
            begun = time.perf_counter()
            clone.run("dvc", "repro")
            seconds = time.perf_counter() - begun
            runs = seeds * (1 + rounds + variants * rounds)
            sizes = [size(clone.path / name) for name in ("data", ".runs", ".dvc/cache", "reports")]
            cells = " | ".join(f"{s:.1f}" for s in sizes)
            print(
                f"| {seeds} | {rounds} | {variants} | {runs} | {seconds:.1f} | {cells} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
