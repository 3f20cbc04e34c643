#!/usr/bin/env bash
# deepluq 0.1.5 (PyPI, uncertainty of object detectors), numpy 2.4.6, scipy 1.17.1, pandas 3.1.1, torch 2.13.0.
#
# Expected: DLMetrics().calcu_prediction_surface(boxes) is the "prediction surface area (sum of convex hulls)" of the four corners
# of the boxes that a stochastic detector draws for one object.
# Seen: it adds up ConvexHull.area, which scipy gives in the plane as the length of the outline (the area is .volume). So it
# grows with the resolution instead of its square, and ranks detections by length: one that wobbles along a line counts for
# more than one that is lost in a square of 16 times the area.
#
# Output seen on 29 November 2026 (200 boxes for one object; by hand: areas by the shoelace formula):
#   10 by 10 pixels: prediction surface 147.9, by hand: area 373.8, length of the outlines 147.9
#   the same at ten times the resolution: prediction surface 1478.7, by hand: area 37382.2, length of the outlines 1478.7
#   24 by 0.25 pixels: prediction surface 191.1, by hand: area 22.7, length of the outlines 191.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps deepluq==0.1.5 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io

import numpy as np
from deepluq.metrics_dl import DLMetrics

generator = np.random.default_rng(0)


def outline(points):
    """The corners of the convex hull, in turn: the lower chain and the upper one, each without right turns."""
    halves = []
    for ordered in (sorted(map(tuple, points)), sorted(map(tuple, points), reverse=True)):
        chain = []
        for point in ordered:
            while len(chain) > 1 and np.linalg.det(np.subtract([chain[-1], point], chain[-2])) <= 0:
                chain.pop()
            chain.append(point)
        halves += chain[:-1]
    return np.array(halves)


def by_hand(boxes):
    """The areas of the four corners' hulls, and the lengths of their outlines, each added up."""
    areas = lengths = 0
    for columns in ([0, 1], [2, 1], [0, 3], [2, 3]):
        corners = outline(boxes[:, columns])
        following = np.roll(corners, -1, axis=0)
        areas += abs((corners[:, 0] * following[:, 1] - following[:, 0] * corners[:, 1]).sum()) / 2
        lengths += np.linalg.norm(following - corners, axis=1).sum()
    return areas, lengths


def drawn(across, down):
    """Boxes around (100, 100, 160, 180) whose corners wobble evenly in a rectangle of this size."""
    wobble = generator.uniform(-0.5, 0.5, (200, 4)) * [across, down, across, down]
    return np.array([100, 100, 160, 180]) + wobble


def measured(name, boxes):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the number of boxes
        surface = DLMetrics().calcu_prediction_surface(boxes)
    area, length = by_hand(boxes)
    print(f"{name}: prediction surface {surface:.1f}, by hand: area {area:.1f}, length of the outlines {length:.1f}")
    return surface, area, length


square = drawn(10, 10)
found = [
    measured("10 by 10 pixels", square),
    measured("the same at ten times the resolution", 10 * square),
    measured("24 by 0.25 pixels", drawn(24, 0.25)),
]
for surface, _, length in found:
    assert abs(surface - length) < 1e-6 * length, found
assert abs(found[1][0] / found[0][0] - 10) < 1e-6 and abs(found[1][1] / found[0][1] - 100) < 1e-6, found
assert found[2][0] > found[0][0] and found[2][1] < found[0][1] / 10, found
PYTHON
echo "as stated"
