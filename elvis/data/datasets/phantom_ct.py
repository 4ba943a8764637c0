"""Phantom chest CT with known truth: nothing is downloaded or stored, every volume and mask is computed when it is read.

    phantom_ct(size=[64, 96, 96], train=2000, domain="A", masks=True)

What is in a scan and in its report: elvis.data.phantoms.scan and docs/phantoms.md. Domain B has other Hounsfield units, other noise
and other words for the same chests: train on A, test on B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from elvis.data import reports
from elvis.data.phantoms.scan import KINDS, STRUCTURES, Domain, Scan, ScanImage, ScanMask, scans
from elvis.data.phantoms.scan_anatomy import LARGEST
from elvis.data.studies import StudyTable
from elvis.errors import ConfigError
from elvis.registry import DATASETS
from elvis.types import Grounding, Mask, Study

LEAST, MOST = (16, 32, 32), 512  # voxels along z, y, x
WINDOW = (-1000.0, 200.0)  # HU: SO-ITC's (arXiv 2603.04878)


@DATASETS.register("phantom_ct")
def phantom_ct(
    *,
    seed: int = 0,
    size: int | Sequence[int] = (64, 96, 96),  # voxels z, y, x; one number = a cube. The field of view is the same for all
    train: int = 2000,  # studies of each split; 0 = without it
    val: int = 200,
    test: int = 400,
    domain: Domain = "A",  # B: other Hounsfield units, noise and words, the same chests and findings
    dup: float = 0.5,  # share of the normal sentences that take the first form of their structure: equal texts of different studies
    omitted: float = 0.3,  # share of the normal structures that a report does not mention
    large: float = 1.0,  # factor of the radii of findings that are ellipsoids, up to 1.9: easier
    window: Sequence[float] = WINDOW,  # Hounsfield units shown as 0 and 255
    masks: bool = False,  # of every study: each of the 17 structures
) -> StudyTable:
    """Phantom CT studies, patients disjoint between the splits; about a millisecond a study, nothing is painted. Raises ConfigError."""
    counts = {"train": train, "val": val, "test": test}
    whole = {"seed": seed, **counts}
    wrong = [f"{name}={value!r}" for name, value in whole.items() if isinstance(value, bool) or not isinstance(value, int) or value < 0]
    if wrong:
        raise ConfigError(f"phantom_ct: {', '.join(wrong)}", "give whole numbers, zero or more")
    if domain not in ("A", "B"):
        raise ConfigError(f"phantom_ct: domain={domain!r}", "known: A, B")
    if not (0 <= dup <= 1 and 0 <= omitted <= 1):
        raise ConfigError(f"phantom_ct: dup={dup}, omitted={omitted}", "both are shares, from 0 to 1")
    if len(window) != 2 or not window[0] < window[1]:
        raise ConfigError(f"phantom_ct: window={window!r}", "give two numbers of Hounsfield units, the smaller first: window=[-1000, 200]")
    if not 0 < large <= LARGEST:
        raise ConfigError(f"phantom_ct: large={large!r}", f"give a factor above 0, at most {LARGEST}: two nodules would become one above it")
    shape, shown = _shape(size), (float(window[0]), float(window[1]))
    made = (replace(scan, domain=domain, dup=dup, omitted=omitted, large=large) for scan in scans(counts, shape=shape, seed=seed))
    studies = tuple(_study(scan, shown, masks) for scan in made)
    return StudyTable(studies, notes=(f"phantoms: computed CT of nobody, domain {domain}, seed {seed}",))


def _shape(size: int | Sequence[int]) -> tuple[int, int, int]:
    shape = (size,) * 3 if isinstance(size, int) else tuple(size)
    if len(shape) != 3 or not all(isinstance(n, int) and low <= n <= MOST for n, low in zip(shape, LEAST, strict=True)):
        raise ConfigError(f"phantom_ct: size={size!r}", f"give z, y, x of {LEAST} to {MOST} voxels, such as [64, 96, 96], or one number")
    return shape


def _study(scan: Scan, window: tuple[float, float], masks: bool) -> Study:
    lines, sections = scan.sentences, scan.report()
    told = [replace(s, region=line.region, abnormal=line.finding is not None) for s, line in zip(reports.sentences(sections), lines, strict=True)]
    kinds = {finding.kind for finding in scan.findings}
    return Study(
        id=scan.id,
        patient=scan.patient,
        split=scan.split,
        images=(ScanImage(scan, window),),
        spacing=scan.spacing,
        sections=sections,
        sentences=tuple(told),
        groundings=tuple(
            Grounding(line.text, (), scan.findings[line.finding].kind, place, masks=(_mask(scan, line.finding),))
            for place, line in enumerate(lines)
            if line.finding is not None and line.section == "findings"
        ),
        masks=tuple(Mask(name, "computed", ScanMask(scan, name)) for name in STRUCTURES[1:]) if masks else (),
        labels={kind: int(kind in kinds) for kind in KINDS},
        group=scan.id,
    )


def _mask(scan: Scan, finding: int) -> Mask:
    return Mask(scan.findings[finding].kind, "computed", ScanMask(scan, finding))
