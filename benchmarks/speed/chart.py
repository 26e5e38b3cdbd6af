"""Bar and line charts as SVG, in colours that can be read on a white and on a black page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

INK, GRID = "#7a838d", "#7a838d40"
COLORS = ("#3b82d6", "#e08a1e", "#2f9e62", "#c45bb0", "#8a7ad1")
WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 64, 44

Range = Mapping[str, float]
"""`middle`, `low` and `high`, as results have them."""


def bars(
    title: str, groups: Sequence[str], series: Mapping[str, Sequence[Range | None]], x_label: str
) -> str:
    """Return a group of bars for each name in `groups`, a bar a series, with its spread."""
    top = _ceiling(max(one["high"] for of_name in series.values() for one in of_name if one))
    wide = (WIDTH - LEFT - RIGHT) / len(groups)
    bar = wide * 0.8 / len(series)
    parts = [*_frame(title, list(series), top, x_label)]
    for number, group in enumerate(groups):
        left = LEFT + wide * number
        parts.append(_text(left + wide / 2, HEIGHT - BOTTOM + 16, group))
        for place, values in enumerate(series.values()):
            if (value := values[number]) is None:
                continue
            x, y = left + wide * 0.1 + bar * place, _y(value["middle"], top)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar * 0.92:.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}" fill="{COLORS[place]}"/>'
            )
            middle, low, high = x + bar * 0.46, _y(value["low"], top), _y(value["high"], top)
            parts.append(_line((middle, low), (middle, high)))
            parts.append(_text(middle, high - 5, _number(value["middle"]), size=11))
    return _svg(parts)


def lines(
    title: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], x_label: str
) -> str:
    """Return a line through the points of each series; both axes begin at 0, names share colours."""
    names = list(dict.fromkeys(name for name, _ in series))
    points = [point for _, of_name in series for point in of_name]
    top, end = _ceiling(max(y for _, y in points)), _ceiling(max(x for x, _ in points))
    parts = [*_frame(title, names, top, x_label)]
    for step in range(6):
        at = end * step / 5
        parts.append(_text(_x(at, end), HEIGHT - BOTTOM + 16, _number(at)))
    for name, values in series:
        drawn = [(_x(x, end), _y(y, top)) for x, y in values]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        color = COLORS[names.index(name)]
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in drawn]
    return _svg(parts)


def _frame(title: str, names: Sequence[str], top: float, x_label: str) -> Iterator[str]:
    yield _text(LEFT, 20, title, anchor="start", size=15)
    x = float(LEFT)
    for place, name in enumerate(names):
        yield f'<rect x="{x:.0f}" y="33" width="11" height="11" fill="{COLORS[place]}"/>'
        yield _text(x + 16, 43, name, anchor="start")
        x += 16 + 6.6 * len(name) + 18
    for step in range(6):
        y = _y(top * step / 5, top)
        yield _line((LEFT, y), (WIDTH - RIGHT, y), color=GRID)
        yield _text(LEFT - 8, y + 4, _number(top * step / 5), anchor="end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label)


def _x(value: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT - 12) * value / end


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top


def _ceiling(value: float) -> float:
    """Return the next round number, with room for a label above the highest bar."""
    if value <= 0:
        return 1.0
    size = 10 ** math.floor(math.log10(value * 1.08))
    return next(size * n for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if size * n >= value * 1.08)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _line(start: tuple[float, float], end: tuple[float, float], color: str = INK) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{INK}">{escape(text)}</text>'


def _svg(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    style = f'width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif">'
    return "\n".join([head + style, *parts, "</svg>\n"])
