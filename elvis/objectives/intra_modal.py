"""Intra-modal similarity (ELVIS): what is alike inside one image, or one report, before the projection stays so after it.

    Y_kl = cos(y_k, y_l)   before,   Z_kl = cos(z_k, z_l)   after;    k, l regions of one image or sentences of one report, l != k

    kl     L = mean over studies of  sum_k w_k KL( softmax_l(sg Y_kl / tau_t) || softmax_l(Z_kl / tau_s) )
    mse    L = mean over studies of  sum_k w_k mean_l (Z_kl - sg Y_kl)^2

A RECONSTRUCTION: ELVIS (arXiv 2304.05303) says that projection loses the similarities inside an image (its figure 1) and that
it keeps those of both modalities; its formula, temperatures and weights are not public. The defaults marked "ours" were tried on
phantoms with known truth. The teacher may be the study itself, the study centred (its mean feature removed first), or ANOTHER study
(`shuffled`): the control that has the form of the loss and none of its content.

A row needs two others for `kl` (the softmax of a single one is 1 on both sides, whatever the features) and one for `mse`; studies
without such a row are not counted. Several views: similarities are those within a view. Nothing crosses studies: B N N is all it costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elvis.distributed import gather, gather_padded, rank
from elvis.objectives._shared import choose
from elvis.ops import cosine, masked_log_softmax, masked_mean, masked_pairs, masked_zero, upcast
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair

NEEDS = {"image": {"image.tokens", "image_raw.tokens"}, "report": {"text.sentence", "text_raw.sentence"}}


@OBJECTIVES.register("intra_modal")
class IntraModal(nn.Module):
    """Terms `image` and `report` (those of `sides`), each a mean over studies, times its weight."""

    def __init__(
        self,
        *,
        form: str = "kl",  # ours: the most direct reading of figure 1
        sides: Sequence[str] = ("image", "report"),  # ELVIS' abstract: "within radiographs or reports"
        teacher: str = "self",  # figure 1; shuffled = the control, centred = an ablation
        tau_teacher: float = 0.1,  # ours
        tau_student: float = 0.1,  # ours
        stop_gradient: str = "teacher",  # ours: the projection learns to keep, the encoder is not pulled towards it. none: both move
        exclude_self: bool = True,  # ours: Y_kk = Z_kk = 1 says nothing
        weights: str = "uniform",  # ours; pooling: LoVT's attention-pool weights
        image_weight: float = 1.0,  # ours
        report_weight: float = 1.0,  # ours
    ) -> None:
        super().__init__()
        self.form = choose("form", form, {"kl": self.kl, "mse": self.mse})
        self.teacher = choose("teacher", teacher, {"self": itself, "centred": centred, "shuffled": shuffled})
        self.stop_gradient = choose("stop_gradient", stop_gradient, {"teacher": True, "none": False})
        self.pooling = choose("weights", weights, {"uniform": False, "pooling": True})
        self.needs = frozenset().union(*(choose("sides", side, NEEDS) for side in sides))
        self.weight = {side: {"image": image_weight, "report": report_weight}[side] for side in sides}
        self.tau_teacher, self.tau_student, self.exclude_self = tau_teacher, tau_student, exclude_self
        self.fewest = 1 if form == "mse" and exclude_self else 2  # entries a row must have

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        terms = {}
        for side, weight in self.weight.items():
            if side == "image":
                one, before, after, view = pair.image, pair.image_raw.tokens, pair.image.tokens, pair.image.view
            else:
                one, view = pair.text.units["sentence"], None
                before, after = pair.text_raw.units["sentence"].vectors, one.vectors
            total, count = self.compare(before, after, one.mask, view, one.weights if self.pooling else None, batch.study)
            terms[side] = (weight * total, count)
        return terms

    def compare(
        self, before: Tensor, after: Tensor, mask: Tensor, view: Tensor | None, weights: Tensor | None, study: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features B N * before and after, mask B N, view B N, row weights B N -> sum over studies, number of studies."""
        before = masked_zero(upcast(before.detach() if self.stop_gradient else before), mask)
        after = masked_zero(upcast(after), mask)
        teacher, pairs = self.teacher(before, mask, study, masked_pairs(mask, view))  # B N N both
        if self.exclude_self:
            pairs = pairs & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        rows = pairs.sum(-1) >= self.fewest  # B N
        each = self.form(teacher, cosine(after, after), pairs)  # B N
        return masked_mean(each.unsqueeze(-1), rows, weights).sum(), rows.any(1).sum().to(each.dtype)

    def kl(self, teacher: Tensor, student: Tensor, pairs: Tensor) -> Tensor:
        teacher, student = teacher / self.tau_teacher, student / self.tau_student
        log_p, log_q = masked_log_softmax(teacher, pairs), masked_log_softmax(student, pairs)  # both 0 where not a pair
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def mse(self, teacher: Tensor, student: Tensor, pairs: Tensor) -> Tensor:
        return ((student - teacher).square() * pairs).sum(-1) / pairs.sum(-1).clamp_min(1)


# A teacher: features B N D, mask B N, study B, comparable pairs B N N -> similarities B N N, and which of them to use.


def itself(before: Tensor, mask: Tensor, study: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    return cosine(before, before), pairs


def centred(before: Tensor, mask: Tensor, study: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    before = masked_zero(before - masked_mean(before, mask).unsqueeze(-2), mask)
    return cosine(before, before), pairs


def shuffled(before: Tensor, mask: Tensor, study: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The study before this one in the batch, where both are real; no pair if it is the same study (a batch of one)."""
    other, real = previous(before), previous(mask) & mask
    return cosine(other, other), pairs & masked_pairs(real) & (previous(study) != study)[:, None, None]


def previous(x: Tensor) -> Tensor:
    """Rows B ... moved down by one over all ranks: the first is the last of the rank before. The second axis keeps its length."""
    last = gather(x[-1:]) if x.ndim == 1 else gather_padded(x[-1:])[:, : x.shape[1]]  # W ...
    return torch.cat([last[rank() - 1 :][:1], x[:-1]])  # rank 0 takes the last rank's
