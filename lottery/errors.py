"""What people are told: mistakes that they can mend, and lines that fit their terminal."""

import shutil
import sys
import textwrap
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
