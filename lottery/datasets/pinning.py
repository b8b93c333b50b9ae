"""Whether a source may change unseen: DVC looks at files that ``fetch`` depends on, at no URL."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pooch
import requests

from lottery.artifacts import files
from lottery.datasets.archives import shown
from lottery.datasets.sources import OWN, TIMEOUT_SECONDS, file_names, local, usable
from lottery.errors import LotteryError, without_secrets
from lottery.params import Data
from lottery.params.catalogue import DATASETS
from lottery.params.reading import read_yaml


def check_seen(data: Data) -> None:
    """Raises LotteryError where a local source could change and `dvc repro` would not see it.

    It is pinned (a file, by ``data.sha256`` or as the dataset's own), so that other content fails,
    or one of the dependencies of ``fetch`` in dvc.yaml covers it.
    """
    path = local(data.source)
    if path is None or not path.exists():
        return
    usable(path, str(data.source))
    if data.sha256:
        return
    if path.is_dir():
        file_names(path)  # refuses links that DVC does not follow
    if covering(path, read_yaml(Path("dvc.yaml"))["stages"]["fetch"].get("deps", [])):
        return
    actual = pooch.file_hash(str(path)) if path.is_file() else ""
    if data.name not in DATASETS or actual not in DATASETS[data.name].files.values():
        raise LotteryError(
            f"data.source: {shown(str(path))}: `dvc repro` would not see it change: move it to "
            f"{OWN}/, or add `- {path}` to the deps of fetch in dvc.yaml"
            + (f", or set data.sha256 to {actual}" if actual else "")
        )


def covering(path: Path, deps: Iterable[str]) -> list[str]:
    """The dependencies that a path is, or lies in."""
    return [dep for dep in deps if path.resolve().is_relative_to(Path(dep).resolve())]


def asked_again(data: Data) -> tuple[bool, str]:
    """Whether a download that is not pinned is another now, and a line on that, if there is any."""
    if data.source is None or local(data.source) or data.sha256:
        return False, ""
    name = without_secrets(data.source)
    context = f"data.source: {name}: not pinned (data.sha256)"
    fetched = files.DATASET / "dataset.json"
    facts = files.read_json(fetched) if fetched.exists() else {}
    before: Mapping[str, str] = facts.get("source_version", {})
    if facts.get("source") != name or not before:
        return False, f"{context}: whether it has changed cannot be told"
    try:
        answer = requests.head(data.source, timeout=TIMEOUT_SECONDS, allow_redirects=True)
        answer.raise_for_status()
    except (requests.RequestException, ValueError) as error:
        return False, f"{context}, and its server could not be asked ({type(error).__name__})"
    for kind, was in before.items():
        if (now := answer.headers.get(kind, "none")) != was:
            changed = f"its {kind} was {was} when it was fetched, now {now}"
            return True, f"{context}: {changed}: `dvc repro --force fetch`"
    return False, ""
