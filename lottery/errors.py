"""Mistakes that a user can mend: reported as plain lines, never as a traceback."""


class LotteryError(Exception):
    """What went wrong, with the key or file at fault and the next thing to do; one line or more."""
