"""Why a contender did not take part, for its line in a table."""

import re

_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b")  # as Python ends a traceback


def reason_in(errors: str) -> str:
    """The line that says why a process ended, of what it wrote to standard error: the last error, or the last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["ended without a word"]
    return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])
