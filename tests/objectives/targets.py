"""What is right among studies, by a Python loop; and studies of which some are alike, for the objectives that share the options of StudyTargets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from elvis.types import Batch, Pair
from tests import loops
from tests.pairs import make

OPTIONS: list[dict[str, Any]] = [
    {"targets": "soft"},
    {"targets": "soft", "alpha": 1.0, "target_temperature": 0.5},
    {"targets": "soft", "alpha": 0.2, "equal_text": "negative"},
    {"targets": "mined"},
    {"targets": "mined", "threshold": 0.5},
    {"targets": "mined", "threshold": 0.0, "equal_text": "negative"},
    {"equal_text": "negative"},
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"alpha": 1.5}, r"alpha 1\.5(.|\n)*\[0, 1\]"),
    ({"alpha": -0.1}, r"alpha -0\.1"),
    ({"target_temperature": 0.0}, r"target_temperature 0\.0(.|\n)*above 0"),
    ({"threshold": 1.0}, r"threshold 1\.0(.|\n)*\[0, 1\)"),
    ({"threshold": -0.5}, r"threshold -0\.5"),
    ({"targets": "sof"}, r"'targets'.*'sof'.*did you mean 'soft'(.|\n)*own \| soft \| mined"),
    ({"equal_text": "positive"}, r"'equal_text'.*'positive'(.|\n)*ignore \| negative"),
]


@dataclass
class Right:
    """Of one row: places of positives and negatives, and the target over both, or None."""

    positives: list[int]
    negatives: list[int]
    target: dict[int, float] | None = None

    def loss(self, logits: Mapping[int, float]) -> float:
        """InfoNCE over the positives, or the cross entropy with the target."""
        if self.target is not None:
            return loops.cross_entropy(list(self.target.values()), [logits[j] for j in self.target])
        return loops.nce([logits[j] for j in self.positives], [logits[j] for j in self.negatives])


def right(
    pair: Pair,
    batch: Batch,
    real: list[int],
    *,
    targets: str = "own",
    equal_text: str = "ignore",
    alpha: float = 0.5,
    target_temperature: float = 0.1,
    threshold: float = 0.9,
    **_: Any,
) -> dict[int, Right]:
    study, report, raw = batch.study.tolist(), batch.units["report"].group[:, 0].tolist(), pair.text_raw.pooled.tolist()
    others = {i: [j for j in real if study[j] != study[i]] for i in real}
    against = {i: [j for j in js if equal_text == "negative" or report[j] != report[i]] for i, js in others.items()}
    s = {(i, j): loops.cos(raw[i], raw[j]) for i in real for j in real}
    out = {}
    if targets == "mined":
        pairs = [s[i, j] for i in real for j in others[i]]
        mean = sum(pairs) / max(1, len(pairs))
        for i in real:
            found = [j for j in others[i] if (s[i, j] - mean) / (1 - mean) > threshold]
            out[i] = Right([i, *found], [j for j in against[i] if j not in found])
        return out
    for i in real:
        out[i] = Right([i], against[i])
        if targets == "soft":
            columns = [i, *against[i]]
            share = loops.softmax([s[i, j] / target_temperature for j in columns])
            out[i].target = {j: alpha * p + (1 - alpha) * (j == i) for j, p in zip(columns, share, strict=True)}
    return out


def some_alike(**options: Any) -> tuple[Pair, Batch]:
    """Seven studies: 0 and 2 read the same, the text of 3 is nearly that of 1, 0 and 4 are one study; 5 has no report, 6 no image."""
    pair, batch = make(sentences=(2, 1, 2, 1, 1, 0, 2), words=(3, 2, 3, 2, 2, 0, 3), **options)
    raw = pair.text_raw.pooled.detach().clone()
    raw[2], raw[3] = 2 * raw[0], raw[1] + 0.1 * raw[3]
    mask = pair.image.mask.clone()
    mask[6] = False
    group = torch.tensor([[7], [8], [7], [9], [10], [11], [12]])
    units = {**batch.units, "report": replace(batch.units["report"], group=group)}
    pair = replace(pair, image=replace(pair.image, mask=mask), text_raw=replace(pair.text_raw, pooled=raw))
    return pair, replace(batch, study=torch.tensor([0, 1, 2, 3, 0, 5, 6]), units=units)
