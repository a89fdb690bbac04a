"""Masks as polygons and back: outlines along the edges of pixels, holes reached through a slit of no width.

A polygon without tolerance covers exactly the pixels of its mask, by the rule that a pixel is inside where its centre
is. Coordinates are px from the upper left corner of the image; a pixel (row, column) spans column..column + 1.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(K, 2) float64: x and y of each vertex; the last is joined to the first."""

_FARTHEST = 1e9  # Px that no picture reaches; further out, products of coordinates overflow
_CROSSINGS = 1 << 22  # Of edges and rows, held at a time


def traced(mask: NDArray[np.bool_], tolerance_px: float = 0.0) -> list[Points]:
    """A polygon for each connected part (by edges, not corners) of a mask (H, W) bool.

    tolerance_px: vertices are left out while the outline stays this near to them; 0 keeps every pixel.
    Holes belong to the polygon around them: outlines turn clockwise, holes counter-clockwise.
    """
    rows, columns, by_row, by_column = _corners(mask)
    if not len(rows):
        return []
    next_across, next_along = by_row.tolist(), by_column.tolist()
    y, x = rows.tolist(), columns.tolist()
    rings: list[list[int]] = []
    holes: list[int] = []
    ring_of = [-1] * len(y)
    for start in range(len(y)):
        if ring_of[start] >= 0:
            continue
        ring, node = [], start
        while ring_of[node] < 0:
            other = next_across[node]
            ring_of[node] = ring_of[other] = len(rings)
            ring += [node, other]
            node = next_along[other]
        # The first corner is the upper left one: what is below it to the right is the ring's inside, or a hole
        if y[start] >= mask.shape[0] or x[start] >= mask.shape[1] or not mask[y[start], x[start]]:
            holes.append(len(rings))
            ring = [ring[0], *ring[:0:-1]]
        rings.append(ring)
    slits = _slits(mask, rings, holes, rows, columns, next_along)
    inner = set(holes)
    return [
        _simplified(*_with_holes(number, rings, slits, x, y), tolerance_px)
        for number in range(len(rings))
        if number not in inner
    ]


def filled(polygons: Iterable[Points], height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) bool: pixels whose centres are inside one of the polygons, each by the even-odd rule."""
    mask = np.zeros((height, width), bool)
    for points in polygons:
        ends = np.roll(points, -1, axis=0)
        upward = points[:, 1] > ends[:, 1]
        low, high = np.where(upward[:, None], ends, points), np.where(upward[:, None], points, ends)
        first = np.clip(np.ceil(low[:, 1] - 0.5), 0, height).astype(np.int64)  # Rows whose centres the edge crosses
        last = np.clip(np.ceil(high[:, 1] - 0.5), 0, height).astype(np.int64)
        crossed = np.flatnonzero(last > first)
        if not len(crossed):
            continue
        top, bottom = int(first[crossed].min()), int(last[crossed].max())
        left, right = np.clip(np.ceil(points[:, 0][[points[:, 0].argmin(), points[:, 0].argmax()]] - 0.5), 0, width)
        toggles = np.zeros((bottom - top, int(right) - int(left) + 1), np.uint8)  # Only whether it is odd matters
        # A few edges at a time: there may be a million that are as high as the picture
        total = np.cumsum(last[crossed] - first[crossed])
        for part in np.split(crossed, np.searchsorted(total, np.arange(_CROSSINGS, total[-1], _CROSSINGS))):
            lengths = last[part] - first[part]
            edges = np.repeat(part, lengths)
            rows = np.arange(len(edges)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[edges]
            slope = (high[edges, 0] - low[edges, 0]) / (high[edges, 1] - low[edges, 1])
            crossing = low[edges, 0] + (rows + 0.5 - low[edges, 1]) * slope
            columns = np.clip(np.ceil(crossing - 0.5), left, right).astype(np.int64)
            np.add.at(toggles.reshape(-1), (rows - top) * toggles.shape[1] + columns - int(left), np.uint8(1))
        inside = np.cumsum(toggles[:, :-1], axis=1, dtype=np.uint8) % 2 == 1
        mask[top:bottom, int(left) : int(right)] |= inside
    return mask


def points_of(numbers: Sequence[float] | NDArray[np.float64]) -> Points:
    """Vertices of a flat list x, y, x, y. Raises ValueError where it is no polygon near a picture."""
    try:
        points = np.asarray(numbers, np.float64)
    except (TypeError, ValueError):
        raise ValueError("a polygon is no list of numbers") from None
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not (np.abs(points) <= _FARTHEST).all():  # NaN too
        raise ValueError("a polygon is no list of three or more points")
    return points.reshape(-1, 2)


def _corners(mask: NDArray[np.bool_]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of each corner of the outlines, and its neighbours along the row and along the column.

    Corners are in the order of rows. Where two parts touch at a point it is a corner of both: twice in the list.
    """
    height, width = mask.shape
    grid = np.zeros((height + 2, width + 2), np.int8)
    grid[1:-1, 1:-1] = mask
    nw, ne, sw, se = grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]
    inside = nw + ne + sw + se
    falling = (inside == 2) & (nw == se)  # Touching from the upper left to the lower right
    rising = falling & (ne == 1)
    times = np.where(inside % 2 == 1, 1, np.where(falling, 2, 0))
    rows, columns = np.nonzero(times)
    repeat = times[rows, columns]
    is_second = np.arange(repeat.sum()) - np.repeat(np.cumsum(repeat) - repeat, repeat) == 1
    rising_here = np.repeat(rising[rows, columns], repeat)
    rows, columns = np.repeat(rows, repeat), np.repeat(columns, repeat)
    # Along a row, corners pair up from the left: the first of a double one ends an edge, the second begins one.
    # Along a column likewise from above; the corner that ends an edge from the left ends one from above where the part
    # lies to the upper left, and begins one downwards where it lies to the lower left
    across = np.arange(len(rows)) ^ 1
    begins_down = is_second ^ rising_here
    order = np.lexsort((begins_down, rows, columns))
    along = np.empty(len(rows), np.int64)
    along[order] = order[np.arange(len(rows)) ^ 1]
    return rows, columns, across, along


def _slits(
    mask: NDArray[np.bool_],
    rings: list[list[int]],
    holes: list[int],
    rows: np.ndarray,
    columns: np.ndarray,
    next_along: list[int],
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Where slits to holes begin: by the two corners of an edge, height of the slit and number of the hole.

    From the upper left corner of a hole a slit goes left to the next outline, of its part or of another hole.
    """
    if not holes:
        return {}
    # Vertical edges by column, then by their upper end
    uppers = np.array([k for k, other in enumerate(next_along) if rows[k] < rows[other]], np.int64)
    uppers = uppers[np.lexsort((rows[uppers], columns[uppers]))]
    keys = columns[uppers] * (mask.shape[0] + 1) + rows[uppers]
    slits: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for hole in holes:
        corner = rings[hole][0]
        y, x = int(rows[corner]), int(columns[corner])
        outside = np.flatnonzero(~mask[y, :x])
        left = int(outside[-1]) + 1 if len(outside) else 0
        upper = int(uppers[np.searchsorted(keys, left * (mask.shape[0] + 1) + y, side="right") - 1])
        slits.setdefault((upper, next_along[upper]), []).append((y, hole))
    return slits


def _with_holes(
    outer: int,
    rings: list[list[int]],
    slits: dict[tuple[int, int], list[tuple[int, int]]],
    x: list[int],
    y: list[int],
) -> tuple[Points, NDArray[np.bool_]]:
    """Vertices of an outline with its holes, and which of them are ends of slits."""
    points: list[tuple[int, int]] = []
    fixed: list[bool] = []
    # What is still to be written, the next last: x, y, whether an end of a slit, and the edge that begins there
    todo: list[tuple[int, int, bool, tuple[int, int] | None]] = []

    def open_ring(number: int) -> None:
        ring = rings[number]
        if number != outer:
            todo.append((x[ring[0]], y[ring[0]], True, None))
        for k in range(len(ring) - 1, -1, -1):
            edge = ring[k], ring[(k + 1) % len(ring)]
            todo.append((x[ring[k]], y[ring[k]], number != outer and k == 0, edge))

    open_ring(outer)
    while todo:
        px, py, is_end, edge = todo.pop()
        points.append((px, py))
        fixed.append(is_end)
        if edge is None:
            continue
        held = slits.get(edge) or slits.get((edge[1], edge[0])) or ()
        for height, hole in sorted(held, reverse=y[edge[0]] < y[edge[1]]):
            todo.append((px, height, True, None))
            open_ring(hole)
            todo.append((px, height, True, None))
    return np.array(points, np.float64), np.array(fixed)


def _simplified(points: Points, fixed: NDArray[np.bool_], tolerance_px: float) -> Points:
    """A closed outline with fewer vertices, after Douglas and Peucker (1973); those that are fixed stay."""
    if tolerance_px <= 0:
        return points
    ends = np.flatnonzero(fixed)
    if not len(ends):  # Two opposite vertices
        ends = np.array([0, int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))])
    keep = np.zeros(len(points) + 1, bool)
    closed = np.concatenate([points, points[:1]])
    spans = [(int(a), int(b)) for a, b in zip(ends, [*ends[1:], len(points)], strict=True)]
    if ends[0] > 0:
        spans.append((0, int(ends[0])))
    while spans:
        first, last = spans.pop()
        keep[first] = keep[last] = True
        if last - first < 2:
            continue
        chord, offsets = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        length = float(np.hypot(*chord))
        across = np.abs(chord[0] * offsets[:, 1] - chord[1] * offsets[:, 0]) / length if length else None
        away = np.hypot(offsets[:, 0], offsets[:, 1]) if across is None else across
        farthest = int(np.argmax(away))
        if away[farthest] > tolerance_px:
            middle = first + 1 + farthest
            spans += [(first, middle), (middle, last)]
    simple = points[keep[:-1]]
    return simple if len(simple) >= 3 else points
