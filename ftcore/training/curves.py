"""Curves over the steps of a run as inline SVG: no library, no script, and colours that the page chooses."""

import math
from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40  # margins, where the ticks are written
_MOST_POINTS = 400  # of a curve; more are averaged in groups
_MOST_DOTS = 40  # a curve of no more has a dot at each point, which says its value


def chart(title: str, curves: dict[str, Points], *, logarithmic: bool = False) -> str:
    """A figure of one or two curves, its points (step, value) in the order of steps; "" if there are none.

    With `logarithmic`, values that span more than a factor of 20 are drawn so, which the caption says.
    """
    curves = {name: _averaged(points) for name, points in curves.items() if points}
    if not curves:
        return ""
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    logarithmic = logarithmic and min(values) > 0 and max(values) > 20 * min(values)
    y_ticks = _log_ticks(min(values), max(values)) if logarithmic else _ticks(min(values), max(values))
    x_ticks = _ticks(min(steps), max(steps))
    bend = math.log if logarithmic else float
    y_low, y_high = bend(min(*values, *y_ticks)), bend(max(*values, *y_ticks))
    x_low, x_high = min(steps), max(*steps, min(steps) + 1)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (y_high - bend(value)) / (y_high - y_low)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in y_ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for step in x_ticks:
        if x_low <= step <= x_high:
            parts.append(f'<text x="{x(step):.1f}" y="{bottom + 17}" text-anchor="middle">{step:g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>')
    for number, (name, points) in enumerate(curves.items()):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline class="curve{number}" points="{path}"/>')
        for step, value in points if len(points) <= _MOST_DOTS else ():
            said = f"<title>step {step:g}: {escape(name)} {value:.4g}</title>"
            parts.append(
                f'<circle class="dot{number}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3">{said}</circle>'
            )

    words = "; ".join(
        f"{name} from {first[1]:.4g} at step {first[0]:g} to {last[1]:.4g} at step {last[0]:g}"
        for name, (first, *_, last) in ((name, [points[0], *points]) for name, points in curves.items())
    )
    keys = " ".join(f'<span class="key{number}">{escape(name)}</span>' for number, name in enumerate(curves))
    scale = " <small>logarithmic</small>" if logarithmic else ""
    return (
        f"<figure><figcaption><b>{escape(title)}{scale}</b> {keys}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}: {escape(words)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _averaged(points: Points) -> Points:
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size > 1 else []
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups] or points


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    width = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first, last = math.floor(low / width), math.ceil(high / width)
    return [float(f"{number * width:.12g}") for number in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between; where those are many, the powers alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]
