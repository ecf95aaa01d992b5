"""Distribution plots as SVG, drawn by hand: no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 640, 320, 56
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df")


def cumulative_plot(title: str, unit: str, curves: Mapping[str, Sequence[float]]) -> str:
    """The share of values (0 to 100 %) that are at most x, one curve for each name."""
    highest = max((max(values) for values in curves.values() if values), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(WIDTH / 2, 20, title, "middle", 14),
    ]
    for step in range(5):
        share = step / 4
        x, y = _x(share), _y(share)
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(_text(MARGIN - 6, y + 4, f"{share:.0%}", "end"))
        parts.append(_text(x, HEIGHT - MARGIN + 18, f"{share * highest:.4g}", "middle"))
    parts.append(_text(WIDTH / 2, HEIGHT - 16, unit, "middle"))
    for index, (name, values) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<path d="{_steps(sorted(values), highest)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = MARGIN + 14 + 18 * index
        parts.append(f'<path d="M{WIDTH - MARGIN - 130} {y - 4}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(WIDTH - MARGIN - 106, y, name, "start"))
    return "".join((*parts, "</svg>\n"))


def _steps(ordered: Sequence[float], highest: float) -> str:
    """At most some hundred points, however many values there are."""
    stride = max(1, len(ordered) // 200)
    path = f"M{_x(0):.1f} {_y(0):.1f}"
    for index in (*range(0, len(ordered), stride), len(ordered) - 1):
        if index >= 0:
            path += f"H{_x(ordered[index] / highest):.1f}V{_y((index + 1) / len(ordered)):.1f}"
    return path


def _x(share: float) -> float:
    return MARGIN + share * (WIDTH - 2 * MARGIN)


def _y(share: float) -> float:
    return HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#24292f">{escaped}</text>'
