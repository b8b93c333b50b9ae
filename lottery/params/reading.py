"""A YAML file that people write and git merges: read, typed, each mistake in it a plain line."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import lru_cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from lottery.errors import LotteryError, without_secrets

LARGEST = 200_000  # values in a file; params.yaml has about 60, dvc.lock thousands
CONFLICT_MARK = re.compile(r"^(<{7}|>{7})(?= |$)", flags=re.MULTILINE)
MISSING = object()
ABSENT = "(absent)"
UNKNOWN = ("extra_forbidden", "invalid_key")

PLAINER = {  # parts of pydantic's messages
    r"^(Input|String|List|Tuple) should (be |have )?": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid (number|string|list)": r"a \1",
    "a valid tuple": "a list",
    r"(item)s? after validation, not .*": r"\1",
}

Refusal = tuple[str, str]  # a key, and what is accepted there instead


class Section(BaseModel):
    """A mapping of the file: its keys are the fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _give_missing_keys_a_value(cls, content: Any) -> Any:
        """One that no type accepts, so that pydantic says of each what it does accept."""
        if not isinstance(content, dict):
            return content
        return {n: MISSING for n, f in cls.model_fields.items() if f.is_required()} | content


F = TypeVar("F", bound=Section)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file: dicts, lists and scalars; None of an empty one.

    Raises LotteryError, in one line, where it cannot be read, is not YAML, was left by git in the
    midst of a merge, or would expand to more than ``LARGEST`` values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LotteryError(f"{path}: cannot be read: {error}") from None
    if conflict := CONFLICT_MARK.search(text):
        number = text.count("\n", 0, conflict.start()) + 1
        raise LotteryError(
            f"{path}: line {number}: {conflict[0]} is git's mark of a conflict: keep one of its "
            f"two versions, delete the lines of <<<<<<<, =======, >>>>>>>, then `git add {path}`"
        )
    try:
        if (content := _content(text)) is MISSING:
            raise LotteryError(
                f"{path}: expands to more than {LARGEST:,} values; repeat fewer by aliases (*name)"
            )
        return deepcopy(content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        why = error.problem or error.context
        raise LotteryError(f"{path}: not valid YAML{place}: {why}") from None
    except (YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # the last five come from values that contradict their tags, and from thousands of brackets
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise LotteryError(f"{path}: not valid YAML: {why}") from None


@lru_cache
def _content(text: str) -> Any:
    """What a text says, parsed once: a command reads the same files again and again.

    MISSING where it would be too large.
    """
    yaml = YAML(typ="safe")
    root = yaml.compose(text)
    if _is_too_large(root):
        return MISSING
    return None if root is None else yaml.constructor.construct_document(root)


def _is_too_large(root: Any) -> bool:
    """Whether a node holds more than ``LARGEST``, those behind an alias counted each time."""
    waiting, count = [root], 1
    while waiting and count <= LARGEST:
        node = waiting.pop()
        if isinstance(node, MappingNode):
            children = [part for pair in node.value for part in pair]
        else:
            children = node.value if isinstance(node, SequenceNode) else []
        count += len(children)
        waiting += children
    return count > LARGEST


def typed(content: Any, file: type[F]) -> tuple[F, list[str]]:
    """A file's content as its sections, and a line for each mistake that pydantic finds there.

    A section with a mistake is None, so that the others can be compared all the same.
    """
    try:
        return file.model_validate(content), []
    except ValidationError as error:
        faulty = {(*one["loc"], None)[0] for one in error.errors() if one["type"] not in UNKNOWN}
        fields: dict[str, Any] = dict(file.model_fields)
        sections = {
            name: TypeAdapter(fields[name].annotation).validate_python(
                content[name], extra="ignore"
            )
            for name in fields
            if not faulty & {name, None}
        }
        partial = file.model_construct(**dict.fromkeys(fields) | sections)
        return partial, _mistakes(error, file)


def refused(file: Section, refusals: Iterable[Refusal]) -> list[str]:
    """A line for each key whose value, though of its type, is refused."""
    content = file.model_dump(mode="json", warnings=False)  # a section at fault is None, of no type
    return [_line(key, reduce(getitem, key.split("."), content), words) for key, words in refusals]


def refuse(context: str, lines: list[str]) -> None:
    """Raises LotteryError with these lines, where there are any."""
    if lines:
        raise LotteryError("\n".join(f"{context}: {line}" for line in lines))


def _line(key: str, value: Any, accepted: str) -> str:
    got = "missing" if value is MISSING else f"got {_cut(repr(_clean(value)))}"
    return f"{key}: {got}; accepted: {accepted}"


def _clean(value: Any) -> Any:
    """Without the secrets of URLs in it."""
    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return without_secrets(value) if isinstance(value, str) else value


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _mistakes(error: ValidationError, file: type[Section]) -> list[str]:
    """A line for each key that pydantic found at fault in a file of that type."""
    by_key: dict[str, list[ErrorDetails]] = {}
    lines = []
    for one in error.errors(include_url=False):
        if one["type"] in UNKNOWN:
            lines.append(_unknown(*_place(one["loc"][:-1], file), one["loc"][-1]))
        else:
            by_key.setdefault(".".join(_place(one["loc"], file)[0]), []).append(one)
    for key, ones in by_key.items():
        # a list with a bad item: what else than a list is accepted says nothing new
        if not any(other.startswith(f"{key}.") for other in by_key):
            ways = dict.fromkeys(_accepted(one, _place(one["loc"], file)[1]) for one in ones)
            names = re.findall(r"'(\w+)'", " ".join(ways))
            accepted = " or ".join(ways) + _meant(ones[0]["input"], names)
            lines.append(_line(key or "the file", ones[0]["input"], accepted))
    return lines


def _place(loc: tuple[int | str, ...], file: type[Section]) -> tuple[list[str], type[Section]]:
    """The key's path, and the innermost section on it."""
    path, section = [], file
    for part in loc:  # besides keys and indices, it names the members of a union that were tried
        field = section.model_fields.get(str(part))
        if field or isinstance(part, int):
            path.append(str(part))
        for kind in (field.annotation, *get_args(field.annotation)) if field else ():
            if isinstance(kind, type) and issubclass(kind, Section):
                section = kind
    return path, section


def _unknown(path: list[str], section: type[Section], key: int | str) -> str:
    known = ", ".join(section.model_fields)
    if isinstance(key, int):  # YAML reads {margin: 0,01} as {margin: 0, 1: null}
        known += "; a decimal comma? write a point"
    name = without_secrets(str(key))
    full = ".".join([*path, name if name.isprintable() and len(name) <= 80 else _cut(repr(name))])
    return f"{full}: unknown key; accepted: {known}{_meant(key, section.model_fields)}"


def _meant(text: Any, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(str(text), known, n=1, cutoff=0.75)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _accepted(one: ErrorDetails, section: type[Section]) -> str:
    """What a value that pydantic refuses should be, in words that say what to write instead."""
    value, kind = one["input"], one["type"]
    if kind == "model_type":
        return f"a mapping with the keys {', '.join(section.model_fields)}"
    words = one["msg"]
    for part, plainer in PLAINER.items():
        words = re.sub(part, plainer, words)
    if kind == "string_type" and value is not MISSING and not isinstance(value, dict | list):
        words += f', in quotes: "{value}"'
    elif kind == "list_type" and type(value) is int:
        pair = "image_size" in one["loc"]
        words += f": {[value] * (1 + pair)}" + ", which is one seed" * (one["loc"] == ("seeds",))
    elif kind in ("int_type", "float_type") and isinstance(value, str):
        if re.fullmatch(r"[-+]?\d*,\d+", value):
            words += f", with a decimal point: {value.replace(',', '.')}"
        elif re.fullmatch(r"[-+.\deE]+", value):
            words += f", without quotes: {value}"
    return words


def value_at(values: Any, key: str) -> Any:
    """The value of a dotted key, or ABSENT; dvc.lock holds such keys whole."""
    if isinstance(values, dict) and key in values:
        return values[key]
    for part in key.split("."):
        values = values.get(part, ABSENT) if isinstance(values, dict) else ABSENT
    return values


def differences(key: str, before: Any, now: Any) -> Iterator[str]:
    """``key was before, now after`` for each value that differs, by its full key; no secrets."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before | now:
            values = (section.get(name, ABSENT) for section in (before, now))
            yield from differences(f"{key}.{name}", *values)
    elif before != now:
        texts = (without_secrets(v) if isinstance(v, str) else v for v in (before, now))
        was, is_ = (v if v == ABSENT else json.dumps(v) for v in texts)
        only = ", with other secrets" * (was == is_)
        yield f"{key} was {was} when the stage ran, now {is_}{only}"
