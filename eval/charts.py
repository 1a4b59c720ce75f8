"""Charts and tables of self-contained HTML pages, as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1060px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 3px 7px; text-align: right; }
th:first-child, td:first-child { text-align: left; } .matrix td { text-align: center; min-width: 2.6em; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px; }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; } figcaption { font-size: 12px; }
.yes { color: #1b7837; } .no { color: #b2182b; }
.curves { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
svg text { font: 11px system-ui, sans-serif; fill: #333; } .note { color: #555; font-size: 13px; }
"""
LINES = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#35978f", "#878787", "#bf812d", "#c51b7d", "#4d4d4d")


def page(title: str, parts: list[str]) -> bytes:
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>{''.join(parts)}".encode()


def legend(names: Sequence[str]) -> str:
    """Legend of the lines' colours."""
    marks = (f"<span style='color:{c}'>&#9644;</span> {name}" for name, c in zip(names, cycle(LINES), strict=False))
    return f"<p class=note>{' &ensp; '.join(marks)}</p>"


def curve(title: str, lines: dict[str, NDArray[np.float64]], limits: tuple[float, float] | None = None) -> str:
    """Line chart (SVG) of [points, 2] of (step, value) by name; a single line has no name. Values that are not finite
    are left out. `limits`: of the value axis; default: the range of the values."""
    drawn = [
        (name, points[np.isfinite(points).all(1)], colour)
        for (name, points), colour in zip(lines.items(), cycle(LINES), strict=False)
    ]
    drawn = [each for each in drawn if len(each[1])]
    if not drawn:
        return ""
    width, height, left, top = 320, 170, 46, 24
    values = np.concatenate([points[:, 1] for _, points, _ in drawn])
    low, high = limits or (float(values.min()), float(values.max()))
    last = max(*(float(points[-1, 0]) for _, points, _ in drawn), 1.0)
    out = [
        f'<svg viewBox="0 0 {width} {height}"><text x="{left}" y="14">{title}</text>'
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{left - 4}" y="{height - 24}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{width - 8}" y="{height - 8}" text-anchor="end">{last:.0f} steps</text>'
        f'<rect x="{left}" y="{top}" width="{width - left - 8}" height="{height - top - 24}" '
        'fill="none" stroke="#ddd"/>'
    ]
    for name, points, colour in drawn:
        x = left + (width - left - 8) * points[:, 0] / last
        y = top + (height - top - 24) * (1 - (points[:, 1] - low) / ((high - low) or 1.0))
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        named = f"<title>{name}</title>" if len(drawn) > 1 else ""
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5">{named}</polyline>')
    return "".join(out) + "</svg>"


def matrix(corner: str, names: tuple[str, ...], values: list[list[float | None]]) -> str:
    """Heat map (HTML table) of values in [0, 1] or None, with rows and columns of the same names; darker is higher."""
    head = "".join(f"<th>{name.replace('-', '<br>', 1)}" for name in names)
    out = [f"<table class=matrix><tr><th>{corner}{head}</tr>"]
    for name, row in zip(names, values, strict=True):
        out.append(f"<tr><td>{name}")
        for value in row:
            if value is None:
                out.append('<td style="color:#bbb">-')
            else:
                ink = "#fff" if value > 0.55 else "#222"
                out.append(f'<td style="background:rgba(33,102,172,{value:.2f});color:{ink}">{value:.2f}')
        out.append("</tr>")
    return "".join(out) + "</table>"


def film(frames: list[NDArray[np.uint8]], alt: str) -> str:
    """Looping film of frames uint8 [H, W, 3], as an HTML image."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    more = [*images[1:], *[images[-1]] * 4]
    images[0].save(buffer, "WEBP", save_all=True, append_images=more, duration=250, loop=0, quality=70)
    return f'<img src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="{alt}">'
