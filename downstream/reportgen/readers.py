"""Who reads the reports of a dataset: a rule labeler, and on phantoms the grammar that made them.

reader_of("ct_rate").labeler.name -> ctrate18          reader_of("phantom_ct").exact -> metrics.phantom_ct
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

from downstream.reportgen.metrics import phantom, phantom_ct
from downstream.reportgen.metrics.clinical import CHEXPERT14, CTRATE18, Labeler, clinical
from downstream.reportgen.metrics.clinical import abnormal as labelled_abnormal
from downstream.reportgen.metrics.nlg import nlg
from downstream.reportgen.metrics.sums import Sums
from elvis.errors import ConfigError, nearest

Scores = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sums]]


@dataclass(frozen=True)
class Reader:
    """`exact`: the module that reads a phantom's sentences back; None where no grammar made them. sample: a sentence of its reports."""

    labeler: Labeler
    exact: ModuleType | None = None
    sample: str = "There is a nodule."

    @property
    def scores(self) -> Callable[..., Mapping[str, Sums]]:
        """Scores of claims, of readers with a grammar."""
        return getattr(self.exact, self.exact.__name__.rpartition(".")[2])  # type: ignore[union-attr]

    def abnormal(self, text: str) -> bool:
        """Whether a report tells of a finding: by the grammar where it is one of its reports, else by the labeler."""
        if self.exact is not None and (said := self.exact.told(text)).sentences and said.unknown < said.sentences:
            return bool(said.claims)
        return labelled_abnormal(text, self.labeler)

    def labels(self, text: str) -> list[str]:
        """What a page marks as agreed, missed, invented: kinds with their place on phantoms, else the positive and uncertain observations."""
        if self.exact is not None:
            return sorted({self.exact.named(claim) for claim in self.exact.told(text).claims})
        return sorted(name for name, value in self.labeler.label(text).items() if value != 0 and name != "No Finding")

    @property
    def families(self) -> dict[str, Scores]:
        """Metrics that need the texts alone."""
        exact = {} if self.exact is None else {"phantom": self.scores}
        return {**exact, "clinical": partial(clinical, labeler=self.labeler), "nlg": nlg}

    def family(self, metric: str) -> str:
        """Which of the families gives a metric. ConfigError for a name that none gives."""
        names = {kind: list(measure([self.sample], [self.sample])) for kind, measure in self.families.items()}
        for kind, known in names.items():
            if metric in known:
                return kind
        listed = [name for known in names.values() for name in known]
        example = f"for example bleu_4, {self.labeler.name}_f1_micro_zeros, location_f1 (phantoms); another labeler: labeler=chexpert14, ctrate18"
        raise ConfigError(f"select: no metric '{metric}'{nearest(metric, listed)}", example)


XRAY, CT = Reader(CHEXPERT14), Reader(CTRATE18)
PHANTOM = Reader(CHEXPERT14, phantom, "There is a small nodule in the right upper lung zone.")
PHANTOM_CT = Reader(CTRATE18, phantom_ct, "There is a nodule in the right upper lobe.")
READERS = {"phantom": PHANTOM, "phantom_ct": PHANTOM_CT, **dict.fromkeys(("ct_rate", "radgenome_ct", "ctrg", "rexgroundingct"), CT)}
LABELERS = {"chexpert14": XRAY, "ctrate18": CT}


def reader_of(dataset: str, labeler: str = "auto", *, volumes: bool = False) -> Reader:
    """The reader of a dataset; of one that is not known here that of its kind of image. `labeler`: the one that is wanted instead."""
    found = READERS.get(dataset, CT if volumes else XRAY)
    return found if labeler == "auto" else replace(found, labeler=LABELERS[labeler].labeler)
