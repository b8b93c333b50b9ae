"""What code means: its syntax trees without docstrings and comments. Nothing is run.

A reworded docstring means the same, a changed operator does not. The modules that one imports count
with it, as far as they are the project's or the user's: installed packages count by their versions.
"""

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

COMPUTE_A_RUN = (
    "lottery.datasets.dataset",
    "lottery.masks",
    "lottery.params.early_stopping",
    "lottery.parts",
    "lottery.running.run",
    "lottery.streams",
    "lottery.training.architectures",
    "lottery.training.device",
    "lottery.training.engine",
    "lottery.training.learned_masks",
    "lottery.training.models",
    "lottery.training.schedule",
    "lottery.training.trainer",
)
"""The modules that a run's result depends on. What else they import (parameters, files, splits)
hands them values, which the run's fingerprint holds. A test compares with the imports.
"""

CALL_PARTS = ("fetch", "train_dense", "prune", "retrain")
"""The stages that call parts of one's own; others only name them."""

MENDED = {  # learned_masks: a run of RigL that diverged ended in an error
    "bb364f7e4f270e9e11b090bdebd46ae6aa5d1f573e58cce3ac66f9a1dd1087dc": (
        "ba7a42eae12499a2180353c92c4cc14fc31659cca8982b0d183cb02bb2d8997c"
    )
}
"""Modules' sha256 to those of before a mend that changed the result of no run that could finish:
finished runs stay what they are."""

RUN_BY_PATH = {"imp", "importlib", "importlib.machinery", "importlib.util", "runpy"}
RUN_NOTHING = {"metadata", "resources"}  # of importlib
STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


class Module(NamedTuple):
    """One module: the sha256 of its meaning, and the names of those that it imports."""

    sha256: str
    imports: tuple[str, ...]


class Code(NamedTuple):
    """The code that a stage computes with, as it was when it began."""

    modules: tuple[tuple[str, Module], ...]
    run: str  # the sha256 of what determines a run's result

    def changed(self) -> list[str]:
        """The modules that mean something else now, by name."""
        return [name for name, module in self.modules if _module(name) != module]


def of_stage(stage: str, own: Iterable[str] = (), model: str = "") -> Code:
    """The code of a stage, ``stages.prune`` for instance, and of the user's modules ``own``.

    Args:
        model: the module of ``own``, if any, that the architecture is in.
    """
    modules = read(stage, *own)
    of_model = {n: m for n, m in (read(model) if model else {}).items() if not is_ours(n)}
    names = {*COMPUTE_A_RUN, *of_model}
    meanings = [(name, modules[name].sha256) for name in sorted(names) if name in modules]
    content = [f"{name} {MENDED.get(sha256, sha256)}" for name, sha256 in meanings]
    content += [*beside(of_model), *_versions(of_model.values())]
    return Code(tuple(modules.items()), hashlib.sha256("\n".join(content).encode()).hexdigest())


def beside(modules: Mapping[str, Module]) -> Iterator[str]:
    """What lies in the top folders of modules' packages and is none of them: it may be read.

    Other modules may, where these import what runs a file by its path.
    """
    imported = {name for module in modules.values() for name in module.imports}
    passed = set() if imported & RUN_BY_PATH else {".py"}
    known = set(map(source, modules))
    tops = (_top(name) for name in sorted({name.partition(".")[0] for name in modules}))
    for folder in (f for spec in tops if spec for f in spec.submodule_search_locations or ()):
        for file in sorted(Path(folder).rglob("*")):
            name = file.relative_to(folder)
            counts = file.suffix not in passed and file not in known and file.is_file()
            if counts and not any(map(left_over, name.parts)):
                yield f"{name.as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def left_over(name: str) -> bool:
    """Whether editors, systems and Python itself leave files or folders of such a name."""
    return re.fullmatch(r"\..*|.*~|#.*#|__pycache__", name) is not None


def _versions(modules: Iterable[Module]) -> list[str]:
    """The versions of the installed packages that modules import."""
    imported = {name.partition(".")[0] for module in modules for name in module.imports}
    if not imported:
        return []
    of_package = metadata.packages_distributions()
    names = {name for package in imported for name in of_package.get(package, ())}
    return [f"{name} {metadata.version(name)}" for name in sorted(names)]


def read(*roots: str) -> dict[str, Module]:
    """The modules ``roots`` and all that they import, also through others, sorted by name."""
    packages = {root.partition(".")[0] for root in roots}
    todo, seen = list(roots), dict[str, Module | None]()
    while todo:
        if (name := todo.pop()) in seen:
            continue
        path = source(name)
        counts = path is not None and (name.partition(".")[0] in packages or not installed(path))
        module = seen[name] = _module(name) if counts else None
        if module:  # importing a.b.c runs a and a.b, too
            todo += [*module.imports, *accumulate(name.split(".")[:-1], "{}.{}".format)]
    return {name: module for name, module in sorted(seen.items()) if module}


def is_ours(module: str) -> bool:
    """Whether a module belongs to this project rather than to its user."""
    return module.partition(".")[0] in ("lottery", "stages")


def source(module: str) -> Path | None:
    """The file of a module; None where there is none, as of built-in and compiled ones."""
    top, *below = module.split(".")
    spec = _top(top)
    for name in below:  # of a whole name PathFinder would look for what is imported
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def _top(name: str) -> ModuleSpec | None:
    """Where a package or module is, one too that is installed to be edited (``pip install -e``)."""
    finders = (getattr(finder, "find_spec", None) for finder in (PathFinder, *sys.meta_path))
    specs = (find(name, None) for find in finders if find)
    return next((spec for spec in specs if spec), None)


def meaning(tree: ast.AST) -> str:
    """The sha256 of what a syntax tree means; its docstrings are taken out."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _module(name: str) -> Module | None:
    if (path := source(name)) is None:
        return None
    try:
        return _parsed(path.read_bytes(), name, path.name == "__init__.py")
    except (OSError, SyntaxError, ValueError) as error:  # importing it says so
        return Module(f"unreadable: {type(error).__name__}", ())


@cache
def _parsed(content: bytes, name: str, is_package: bool) -> Module:
    """Once for each content: a stage reads its code when it begins and when it ends."""
    tree = ast.parse(content)
    imports = set(_imported(tree, name, is_package))
    return Module(meaning(tree), tuple(sorted(imports)))


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and node.attr not in RUN_NOTHING:
            if isinstance(node.value, ast.Name) and node.value.id == "importlib":
                yield "importlib"  # all of which `import importlib.metadata` gives
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".") if node.level else []
            above = above[: len(above) - node.level + is_package]
            start = ".".join([*above, *filter(None, [node.module])])
            names = {alias.name for alias in node.names}
            yield from (f"{start}.{name}" for name in names)
            if start != "importlib" or not names <= RUN_NOTHING:
                yield start


def installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    folders = [folder for folder in path.parents if str(folder) in sys.path]
    targets = any(path.relative_to(f).parts[0] in _installed_into(f) for f in folders)
    return targets or any(folder in path.parents for folder in STANDARD)


@cache
def _installed_into(folder: Path) -> frozenset[str]:
    """The files and folders in a folder that packages brought (``pip install --target``)."""
    packages = metadata.distributions(path=[str(folder)])
    return frozenset(file.parts[0] for package in packages for file in package.files or ())
