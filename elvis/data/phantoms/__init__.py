"""Phantom radiographs with known truth: computed chest X-rays, their reports, and where each sentence is in the image.

    source = PhantomImage(seed=0, split="test", index=7, size=224, knobs=make_knobs(level=2, changes={"noise": 0.05}))
    source.read()      uint8 H W               source.report().raw    text        source.truth().mask(0)    bool H W

`knobs` what is hard, `anatomy` the chest, `scene` what is where, `shapes` the truth, `render` the paint, `grammar` the
text, `study` the project's types, `export` files. `layouts` write files as the owners of real datasets distribute them, of
`film` (not square) and `scan` (a small chest CT). `docs/phantoms.md` tells what is modelled and what is not.
"""

from elvis.data.phantoms.grammar import Line, Report, write
from elvis.data.phantoms.knobs import LEVELS, Knobs, make_knobs
from elvis.data.phantoms.scene import FOCAL, KINDS, LATERAL, SIDES, SPLITS, ZONES, Finding, Scene, cells, held_out
from elvis.data.phantoms.shapes import Region
from elvis.data.phantoms.study import PhantomImage, Truth, studies

__all__ = [
    "FOCAL", "KINDS", "LATERAL", "LEVELS", "SIDES", "SPLITS", "ZONES",
    "Finding", "Knobs", "Line", "PhantomImage", "Region", "Report", "Scene", "Truth",
    "cells", "held_out", "make_knobs", "studies", "write",
]  # fmt: skip
