"""How often augmentation draws what, as a table for the screen."""

from collections.abc import Iterator

from pipelines.build import Count, Preview, Range

_HEAD = ("drawn", "images", "parameter", "smallest", "mean", "largest")
_ON_THE_LEFT = ("drawn", "parameter")


def count_table(preview: Preview, *, epoch: int) -> str:
    """Lines: what may be drawn, for how many images it was, and the smallest, mean and largest of each parameter."""
    if not preview.counts:
        return "nothing is drawn: training sees these images as evaluation does (see augment in train.py --help)"
    num_images = preview.num_counted
    rows = [_HEAD, *(row for count in preview.counts for row in _rows(count, num_images=num_images))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    lines = [f"drawn for the first {num_images:,} images of epoch {epoch}:"]
    for row in rows:
        cells = [
            cell.ljust(width) if title in _ON_THE_LEFT else cell.rjust(width)
            for cell, width, title in zip(row, widths, _HEAD, strict=True)
        ]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def _rows(count: Count, *, num_images: int) -> Iterator[tuple[str, ...]]:
    """A line with the first parameter, and one for each other; where these have other shares, all have their own."""
    share = _percent(count.num_images, of=num_images)
    parameters = [(name, _percent(one.num_images, of=num_images), _numbers(one)) for name, one in count.ranges.items()]
    if any(own != share for _, own, _ in parameters):
        yield (count.name, share, "", "", "", "")
        for name, own, numbers in parameters:
            yield ("", own, name, *numbers)
        return
    for place, (name, _, numbers) in enumerate(parameters or [("", "", ("", "", ""))]):
        yield (*((count.name, share) if place == 0 else ("", "")), name, *numbers)


def _numbers(one: Range) -> tuple[str, str, str]:
    return _number(one.smallest), _number(one.mean), _number(one.largest)


def _number(value: float) -> str:
    """About three digits, no more than three behind the point."""
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    written = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0
    return written.rstrip("0").rstrip(".")


def _percent(count: int, *, of: int) -> str:
    return f"{100 * count / of:.1f} %"
