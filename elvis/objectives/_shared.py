"""What several objectives share: an option that is one of a few words, what is right among studies, the units to compare, a computation in chunks.

Which report j is right for image i, and which image for report i, among C_i = own + negatives (`StudyTargets`; the same for both directions, since
texts decide it):

    own     the own one, alone: q = one-hot
    soft    q_i = (1 - alpha) one-hot + alpha softmax_{j in C_i}( S_ij / target_temperature ),   S_ij = cos(y_i, y_j) of report vectors before
            projection, without gradient. SO-ITC's mixed target (arXiv 2603.04878, see structure_contrast) over the reports of a batch
    mined   every j of another study with  (S_ij - o) / (1 - o) > threshold  is a positive, too; o: the mean of S over the pairs of different studies.
            After FaNe (AAAI 2026), a RECONSTRUCTION. FaNe keeps a running mean as o; ours is that of the batch, of all ranks: a loss of its batch
            alone, the same at resume and on every rank. A report that reads the same has S = 1 and is a positive. The threshold is ours

Both read a text encoder that is trained beside. One from scratch puts reports into few clusters, and such targets can draw these closer (phantom
reports, one short run: half of all pairs pass a threshold of .5, hence .9). A pretrained or frozen encoder has no such loop.

`equal_text: ignore`: another study with the same report is neither positive nor negative (ours, group-aware); `negative`: it is a negative, as
CLIP and ConVIRT have it. What is of the own study (or its group) never is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elvis.distributed import gather, own_rows, sum_over_ranks
from elvis.errors import ConfigError, nearest
from elvis.ops import cosine, dots, info_nce, masked_softmax, masked_zero, normalize, real_places, soft_cross_entropy
from elvis.types import Batch, Pair

T = TypeVar("T")


def choose(option: str, word: str, table: Mapping[str, T]) -> T:
    """What `word` stands for in `table`. Raises ConfigError with the allowed words."""
    if word not in table:
        raise ConfigError(f"option '{option}' has no choice '{word}'{nearest(str(word), table)}", f"write {option}: {' | '.join(table)}")
    return table[word]


def check_share(what: str, alpha: float, temperature: float) -> None:
    """The options of a soft target. Raises ConfigError where they make no sense."""
    if not (0 <= alpha <= 1 and temperature > 0):
        raise ConfigError(f"{what} with alpha {alpha}, target_temperature {temperature}", "alpha lies in [0, 1], target_temperature above 0")


def study_pairs(batch: Batch, real: Tensor, *, equal_text: bool = False) -> tuple[Tensor, Tensor]:
    """Own studies (rows) against those of all ranks (columns): the own pair, and the negatives, B W*B bool each.

    A negative is another study with another report; an equal study (or group) or an equal text is neither positive
    nor negative; with `equal_text` an equal text of another study is a negative. `real` (B bool) says which studies have both an image and a
    report; the others take no part.
    """
    report = batch.units["report"].group[:, 0]  # B, hash of the text
    columns = gather(real)
    own = own_rows(len(batch), real.device).unsqueeze(-1) == torch.arange(len(columns), device=real.device)
    other = batch.study.unsqueeze(-1) != gather(batch.study)
    other = other if equal_text else other & (report.unsqueeze(-1) != gather(report))
    both = real.unsqueeze(-1) & columns
    return own & both, other & both


class StudyTargets:
    """Positives, negatives and, where it is soft, the target of studies: the options of it that several objectives have."""

    def __init__(self, what: str, *, targets: str, equal_text: str, alpha: float, target_temperature: float, threshold: float) -> None:
        check_share(what, alpha, target_temperature)
        if not 0 <= threshold < 1:
            raise ConfigError(
                f"{what} with threshold {threshold}", "it lies in [0, 1), of similarities that are 1 where texts are equal, 0 on average"
            )
        self.choice = choose("targets", targets, {"own": self.own, "soft": self.soft, "mined": self.mined})
        self.equal_text = choose("equal_text", equal_text, {"ignore": False, "negative": True})
        self.alpha, self.temperature, self.threshold = alpha, target_temperature, threshold
        self.needs = frozenset() if targets == "own" else frozenset({"text_raw.pooled"})  # read without gradient

    def __call__(self, pair: Pair, batch: Batch, real: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Own studies against those of all ranks: positive and negative B W*B bool, target B W*B (None: none but the positives). `real` as above."""
        return self.choice(pair.text_raw.pooled, batch, real, *study_pairs(batch, real, equal_text=self.equal_text))

    def own(self, text: Tensor, batch: Batch, real: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, None]:
        return positive, negative, None

    def soft(self, text: Tensor, batch: Batch, real: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share = masked_softmax(alike(text, real) / self.temperature, positive | negative)
        return positive, negative, self.alpha * share + (1 - self.alpha) * positive.to(share.dtype)

    def mined(self, text: Tensor, batch: Batch, real: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, None]:
        s, others = alike(text, real), study_pairs(batch, real, equal_text=True)[1]
        total, count = sum_over_ranks(torch.stack([(s * others).sum(), others.sum().to(s.dtype)]))
        mean = total / count.clamp_min(1)
        found = others & (s - mean > self.threshold * (1 - mean).clamp_min(1e-6))  # where all texts are equal, none
        return positive | found, negative & ~found, None


def alike(text: Tensor, real: Tensor) -> Tensor:
    """Cosines of report vectors B D with those of all ranks, without gradient: B W*B; 0 where `real` (B bool) is False."""
    text = normalize(masked_zero(text.detach(), real))
    return dots(text, gather(text))


def matched(logits: Tensor, positive: Tensor, negative: Tensor, target: Tensor | None) -> Tensor:
    """InfoNCE of each row, B M -> B, or the cross entropy with its target."""
    return info_nce(logits, positive, negative) if target is None else soft_cross_entropy(logits, target, positive | negative)


def itself_alone(pairs: Tensor) -> Tensor:
    """The one-hot positives inside a study: comparable pairs B N N -> B N N bool."""
    return torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device) & pairs


def by_similarity(pairs: Tensor, raw: Tensor, temperature: float) -> Tensor:
    """Positives inside a study that follow content: softmax of the cosines before projection, without gradient; pairs B N N, raw B N * -> B N N."""
    raw = masked_zero(raw.detach(), pairs.any(-1))
    return masked_softmax(cosine(raw, raw) / temperature, pairs)


def rows_to_compare(mask: Tensor) -> Tensor:
    """Places of the real among all units, mask B U -> N int64; but on a GPU of all units, since asking how many are real would wait for it."""
    return real_places(mask) if mask.device.type == "cpu" else torch.arange(mask.numel(), device=mask.device)


def says(group: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Which report says, word by word, what a unit says: groups and mask B U of all reports, `rows` N of their units -> B N bool."""
    kind = group.flatten()[rows]  # N
    said = torch.zeros(len(mask), len(rows), dtype=torch.bool, device=mask.device)
    for one, there in zip(group.unbind(1), mask.unbind(1), strict=True):  # never B U N at once
        said |= there[:, None] & (one[:, None] == kind)
    return said


def nearest_said(vectors: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """How alike a unit is to the nearest one of a report: unit vectors B U D and mask B U of all reports, `rows` N of their units -> B N, from -1."""
    units = vectors.flatten(0, 1)[rows]  # N D
    most = units.new_full((len(mask), len(rows)), -1.0)
    for one, there in zip(vectors.unbind(1), mask.unbind(1), strict=True):  # never B U N at once
        most = torch.maximum(most, dots(one, units).masked_fill(~there[:, None], -1.0))
    return most


def in_chunks(score: Callable[..., Tensor], *rows: Tensor, chunk: int) -> Tensor:
    """`score(*rows)` -> B n for all rows at once or, where there are more than `chunk`, part by part, recomputed in the backward."""
    if len(rows[0]) <= chunk:
        return score(*rows)
    split = zip(*(r.split(chunk) for r in rows), strict=True)
    return torch.cat([checkpoint(score, *some, use_reentrant=False, preserve_rng_state=False) for some in split], 1)
