"""The valid names most like a mistyped one, for error messages."""

import difflib
from collections.abc import Sequence


def nearest(name: str, valid: Sequence[str], *, if_many: str | None = "see --help") -> str:
    """`nearest: a, b; valid: a, b, c`: the names most like `name` first.

    Args:
        name: What was given.
        valid: What could have been given.
        if_many: What stands in place of more than twelve valid names; None lists them all.
    """
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.4)
    same_end = [key for key in valid if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1] and key not in close]
    close = (close + same_end)[:3]
    everything = ", ".join(valid) if if_many is None or len(valid) <= 12 else if_many
    return f"nearest: {', '.join(close)}; valid: {everything}" if close else f"valid: {everything}"
