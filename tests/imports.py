"""Which modules of the project a stage's module imports, directly or through others; found in the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _file_of(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def _imported(path: Path) -> set[Path]:
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] not in ("lottery", "stages"):
                continue
            parts = name.split(".")
            for length in range(1, len(parts) + 1):  # importing a.b runs a/__init__.py too
                file = _file_of(".".join(parts[:length]))
                if file is not None:
                    found.add(file)
    return found


def used_by(stage: str) -> set[str]:
    """Paths relative to the project's root, the stage's own module included."""
    todo = [ROOT / "stages" / f"{stage}.py"]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo.extend(_imported(path))
    return {
        str(p.relative_to(ROOT))
        for p in seen
        if ast.parse(p.read_text()).body[1:]  # an __init__.py of a docstring alone computes nothing
    }
