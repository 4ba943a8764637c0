"""What can be wrong with a dataset: one code a kind, counted, with the first places where it was met and what to do about it.

    problems = Problems("siim")
    problems.add("D040", "train-rle.csv, line 55", "run 12 ends at 1050112, the image has 1048576 pixels", "is the table complete?")
    StudyTable(..., problems=problems.listed())

An error (E) stops a run, a warning (W) is counted and said, Q means that the image or study is left out and listed.
An adapter raises DataError at once only where nothing can be read (D001 to D003); rows that are wrong it leaves out and adds here:
`studies.load` raises for the first error among them, `python -m elvis.data doctor` shows them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_MISSING = 0.005  # of the images a table lists: more than that is a download that is not complete
CODES = {  # code -> (severity, what it means)
    "D001": ("E", "a file or folder that is needed is not there"),
    "D002": ("E", "the root lies a level deeper, or higher"),
    "D003": ("E", "a column is missing"),
    "D004": ("E", "a table or a row of it cannot be read"),
    "D005": ("E", "a path leaves the root"),
    "D010": ("Q", "an image file is missing"),
    "D011": ("Q", "an image cannot be read, or is cut off"),
    "D012": ("E", "a DICOM file is compressed in a way nothing installed can read"),
    "D013": ("W", "MONOCHROME1: inverted after its look-up tables"),
    "D014": ("W", "more than 8 bits: scaled"),
    "D015": ("W", "colours or alpha: made grey"),
    "D016": ("Q", "an image shows nothing: one constant value, a side under 16 pixels, or 20 times as long as wide"),
    "D020": ("Q", "neither findings nor impression has text"),
    "D021": ("Q", "a study has no report"),
    "D022": ("W", "the text is the last paragraph, no header names it"),
    "D023": ("W", "a text is longer than the tokens that are read"),
    "D030": ("E", "a box reaches outside its image (2 pixels or less: cut, and counted as a warning)"),
    "D031": ("E", "a box has no area or is not a number"),
    "D032": ("E", "an image has another size than the one its boxes were drawn in"),
    "D040": ("E", "a run-length code is broken"),
    "D041": ("E", "a mask has another size or other axes than its image"),
    "D042": ("E", "a mask holds other values than 0 and 1, or 0 and 255"),
    "D050": ("E", "an id, or a file, occurs twice"),
    "D051": ("W", "the same text for different patients"),
    "D052": ("W", "the same pixels twice"),
    "D060": ("E", "a patient is in more than one split"),
    "D061": ("E", "patients of an evaluation set are in the training split"),
    "D062": ("W", "a split is not the published one"),
    "D063": ("E", "counts differ from the owner's (without strict=true a warning)"),
    "D064": ("W", "patients are not known, so leakage cannot be checked"),
    "D070": ("W", "images left out because of their view"),
    "D080": ("E", "a CT volume does not look like Hounsfield units"),
    "D081": ("W", "a volume's spacing in the table is not usable, or not the file's"),
    "D082": ("Q", "a volume shows no chest, as its owner says"),
    "D083": ("W", "voxels of a volume are no numbers: the smallest value instead"),
    "D084": ("W", "a NIfTI header tells no orientation (both codes are 0): taken to be in LPS order"),
}


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one dataset. `examples`: the first few, each "file, row: what" and never a text of a report."""

    code: str
    what: str  # of the first occurrence, with file and row
    fix: str
    count: int = 1
    examples: tuple[str, ...] = ()
    warning: bool = False  # counts as a warning although its code is an error's (a box 1 pixel outside)

    @property
    def severity(self) -> str:
        return "W" if self.warning else CODES[self.code][0]


@dataclass
class Problems:
    """Collects the problems of one dataset while its tables are read."""

    dataset: str
    keep: int = 5  # examples of a code
    _found: dict[tuple[str, bool], tuple[int, str, list[str]]] = field(default_factory=dict)

    def add(self, code: str, where: str, what: str, fix: str = "", *, count: int = 1, warning: bool = False) -> None:
        """One more of a kind. `where`: file and row; `what`: without report text; `fix`: what the user can do."""
        known, first_fix, examples = self._found.get((code, warning), (0, fix, []))
        if len(examples) < self.keep:
            examples.append(f"{where}: {what}" if where else what)
        self._found[code, warning] = (known + count, first_fix, examples)

    def listed(self) -> tuple[Problem, ...]:
        """By code; an error before a warning of the same code."""
        rows = sorted(self._found.items())
        return tuple(Problem(code, f"{self.dataset}: {shown[0]}", fix, count, tuple(shown), warning) for (code, warning), (count, fix, shown) in rows)


def errors(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "E"]
