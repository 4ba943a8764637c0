"""What makes phantoms easy or hard: one number a nuisance, so that a result can say which of them mattered.

Levels 0 (smoke) to 3 (hard) are presets; every knob can be set by name on top of a level. Knobs draw from places of
their own in a study's random numbers (`scene.DRAWS`): turning one leaves what the others decide as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from elvis.errors import ConfigError, nearest


@dataclass(frozen=True)
class Knobs:
    """The comment gives the meaning and, where it is not a share in [0, 1], the range."""

    contrast: float  # of findings, as a share of the grey scale; 0.05 to 0.6
    noise: float  # clutter and grain, on the grey scale; 0 to 0.3
    jitter: float  # of the pose: 1 = shift +-12 %, scale +-20 %, rotation +-10 degrees; 0 to 1.5
    spread: float  # how much of its zone a finding may use
    distractors: int  # buttons, leads, markers, collimation in an image, never described; 0 to 6
    findings_max: int  # independent findings an image has at most; companions and second ones come on top; 1 to 8
    normal: float  # share of studies without a finding
    same_kind: float  # share of studies (with a finding that has a side) where one kind occurs a second time, elsewhere
    cooccurrence: float  # P(atelectasis beside it given effusion) and P(edema given cardiomegaly), beyond chance
    omission: float  # share of findings that the report does not mention
    negation: float  # how much the report denies ("No ...") and calls normal
    paraphrase: float  # share of sentences that choose among templates and synonyms instead of taking the first
    location_free: float  # share of sentences that do not say where ("A nodule is present.")
    uncertainty: float  # share of sentences that hedge ("may represent")
    multi: float  # share of possible mergers that are made: two findings in one sentence
    impression: float  # share of reports that have an impression
    dup: float  # share of sentences and regions that shrink to near-duplicates


_LEVELS = (  # jitter and spread strong from level 2 on, or a prior that reads only the text wins
    #     contrast noise jitter spread dis max normal same  cooc  omit  neg  para  free  unc   multi impr dup
    Knobs(0.50, 0.02, 0.15, 0.3, 0, 1, 0.00, 0.00, 0.00, 0.00, 0.00, 0.0, 0.00, 0.00, 0.0, 0.0, 0.0),
    Knobs(0.34, 0.05, 0.40, 0.6, 1, 3, 0.15, 0.10, 0.30, 0.00, 0.40, 1.0, 0.15, 0.05, 0.3, 0.5, 0.0),
    Knobs(0.22, 0.08, 1.00, 1.0, 2, 4, 0.15, 0.20, 0.50, 0.10, 0.50, 1.0, 0.25, 0.10, 0.5, 0.5, 0.0),
    Knobs(0.14, 0.11, 1.00, 1.0, 3, 5, 0.15, 0.30, 0.70, 0.25, 0.60, 1.0, 0.25, 0.15, 0.5, 0.5, 0.0),
)
LEVELS = tuple(range(len(_LEVELS)))
_RANGES = {"contrast": (0.05, 0.6), "noise": (0, 0.3), "jitter": (0, 1.5), "distractors": (0, 6), "findings_max": (1, 8)}
_COUNTS = ("distractors", "findings_max")


def make_knobs(level: int = 2, changes: Mapping[str, Any] | None = None) -> Knobs:
    """The knobs of a level with some of them changed. ConfigError for an unknown level, name or value."""
    if level not in LEVELS:
        raise ConfigError(f"phantom level {level!r} does not exist", f"choose one of {', '.join(map(str, LEVELS))}")
    values = {f.name: getattr(_LEVELS[int(level)], f.name) for f in fields(Knobs)}
    for name, value in (changes or {}).items():
        if name not in values:
            raise ConfigError(f"phantoms have no knob '{name}'{nearest(name, values)}", f"known: {', '.join(sorted(values))}")
        low, high = _RANGES.get(name, (0, 1))
        whole = name in _COUNTS
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"knob {name}={value!r} is not {kind} in {low} to {high}", f"set {name} within that range")
        values[name] = value if whole else float(value)
    return Knobs(**values)
