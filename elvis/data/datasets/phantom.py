"""Phantom radiographs with known truth: nothing is downloaded or stored, every image is computed when it is read.

    phantom(level=1, size=96, train=4000, knobs={"noise": 0.03, "dup": 0.5})

Splits: train, val, test; `comp` held-out kind x side x zone; `decor` without co-occurrence; `swap` twins. See docs/phantoms.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elvis.data import phantoms
from elvis.data.studies import StudyTable
from elvis.errors import ConfigError, nearest
from elvis.registry import DATASETS


@DATASETS.register("phantom")
def phantom(
    *,
    seed: int = 0,
    size: int = 224,  # pixels, square; 64 to 1024
    level: int = 2,  # 0 smoke to 3 hard: presets of the knobs
    knobs: Mapping[str, Any] | None = None,  # single knobs by name, on top of the level (elvis.data.phantoms.Knobs)
    train: int = 4000,  # studies of each split; 0 = without it
    val: int = 256,
    test: int = 512,
    comp: int = 512,
    decor: int = 256,
    swap: int = 256,  # even: twins stand together
    truth: Sequence[str] = phantoms.SPLITS,  # splits whose studies get boxes; train's feed the priors of the evaluation
    masks: bool = False,  # of every study: each kind of finding that is there, mentioned or not, and right lung, left lung, heart
) -> StudyTable:
    """Phantom studies of all splits, patients disjoint between them. About 0.5 ms a study; raises ConfigError."""
    counts = {"train": train, "val": val, "test": test, "comp": comp, "decor": decor, "swap": swap}
    whole = {"seed": seed, **counts}
    wrong = [f"{name}={value!r}" for name, value in whole.items() if isinstance(value, bool) or not isinstance(value, int) or value < 0]
    if wrong:
        raise ConfigError(f"phantom: {', '.join(wrong)}", "give whole numbers, zero or more")
    if not isinstance(size, int) or not 64 <= size <= 1024:
        raise ConfigError(f"phantom: size={size!r}", "give a whole number of pixels from 64 to 1024")
    if swap % 2:
        raise ConfigError(f"phantom: swap={swap} leaves a twin alone", f"set swap to {swap + 1}")
    for name in truth:
        if name not in counts:
            raise ConfigError(f"phantom: truth names no split '{name}'{nearest(name, counts)}", f"known: {', '.join(counts)}")
    made = [
        study
        for name, count in counts.items()
        for study in phantoms.studies(seed=seed, split=name, count=count, size=size, level=level, knobs=knobs, truth=name in truth, masks=masks)
    ]
    return StudyTable(tuple(made), notes=(f"phantoms: computed radiographs of nobody, level {level}, seed {seed}",))
