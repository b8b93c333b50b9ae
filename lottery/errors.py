"""What people are told: mistakes that they can mend, and lines that fit their terminal."""

import io
import re
import shutil
import sys
import textwrap
import traceback
from typing import TextIO


class LotteryError(Exception):
    """What went wrong, with the key or file at fault and the next thing to do; one line or more."""


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line, by default on standard output; on a terminal it is broken between words."""
    file = file or sys.stdout
    if file.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False)
    print(line, file=file, flush=True)


def plain(error: BaseException) -> str:
    """A mistake, or a lack of memory, in plain words; a defect with its traceback."""
    if isinstance(error, LotteryError):
        return str(error)
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return (
            f"not enough memory ({str(error) or type(error).__name__}): set LOTTERY_WORKERS lower, "
            "or allow more (`ulimit -v`)"
        )
    return "".join(traceback.format_exception(error)).rstrip()


def without_secrets(url: str) -> str:
    """A URL for messages and results: without user name, password, query and fragment."""
    return re.sub(r"(?s)^(.*?://)([^/?#]*@)?([^?#]*).*", r"\1\3", url)


def print_any_character() -> None:
    """Makes standard output escape what its encoding lacks, as standard error does by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
