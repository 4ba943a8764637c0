"""Intra-modal similarity (ELVIS): what is alike inside one image, or one report, before the projection stays so after it.

    Y_kl = cos(y_k, y_l)   before,   Z_kl = cos(z_k, z_l)   after;    k, l regions of one image or sentences of one report, l != k

    kl     L = mean over studies of  sum_k w_k KL( softmax_l(sg Y_kl / tau_t) || softmax_l(Z_kl / tau_s) )
    mse    L = mean over studies of  sum_k w_k mean_l (Z_kl - sg Y_kl)^2

A RECONSTRUCTION: ELVIS (arXiv 2304.05303) says that projection loses the similarities inside an image (its figure 1) and that
it keeps those of both modalities; its formula, temperatures and weights are not public. The defaults marked "ours" were tried on
phantoms with known truth. The teacher may be the study itself, the study centred (its mean feature removed first), or ANOTHER study
(`shuffled`): the control that has the form of the loss and none of its content.

Images of one kind share their anatomy, so much of Y is the same in every study, and the control teaches it as well. Ways, all ours, to what is
special about THIS image:

    position: remove    Y_kl - mean_b Y_bkl  and  Z_kl - mean_b Z_bkl  in place of Y and Z, b = the studies of the batch, on all ranks, that compare
                        places k and l: how much more alike two places are than they usually are. Pairs that one study has are left out; the
                        gradient goes through the mean of Z, so that what Z has in common over the studies is not touched. Images only.
    space               the features y: raw | a LEVEL (an earlier map of the image encoder, averaged over each token's cells: texture, brightness)
                        | teacher (a copy of both encoders that follows them slowly, or stays as they began: elvis.teacher) | teacher.LEVEL
                        | pixels (no encoder: each token's mean grey, fine detail, and size of the steps of grey along each axis, standardised).
                        Sentences have no levels and no pixels: theirs are raw, or the copy's.
    standardise         (y - mean) / standard deviation of each feature over the tokens of the batch, on all ranks, before the cosine: what is
                        the same everywhere counts for nothing, what varies little for as much as what varies much. Images only; of pixels always.

A row needs two others for `kl` (the softmax of a single one is 1 on both sides, whatever the features) and one for `mse`; studies
without such a row are not counted. Several views: similarities are those within a view, and a place is one of a view. B N N is all it costs;
only what is taken over the batch crosses studies (N N, or two numbers a feature, from each rank; of micro-batches each has its own).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.distributed import gather, gather_padded, rank
from elvis.errors import ConfigError, nearest
from elvis.objectives._shared import choose
from elvis.ops import cosine, masked_log_softmax, masked_mean, masked_pairs, masked_zero, upcast
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Features, ImageFeatures, Pair


@OBJECTIVES.register("intra_modal")
class IntraModal(nn.Module):
    """Terms `image` and `report` (those of `sides`), each a mean over studies, times its weight."""

    def __init__(
        self,
        *,
        form: str = "kl",  # ours: the most direct reading of figure 1
        sides: Sequence[str] = ("image", "report"),  # ELVIS' abstract: "within radiographs or reports"
        teacher: str = "self",  # figure 1; shuffled = the control, centred = an ablation
        position: str = "keep",  # ELVIS; remove (ours): compare what differs from the other studies at the same two places
        space: str = "raw",  # figure 1: the encoder's output; LEVEL, teacher, teacher.LEVEL, pixels are ours
        standardise: bool = False,  # ours
        teacher_decay: float = 0.99,  # ours, of the copy: copy <- decay copy + (1 - decay) encoder after each step; 1 = it stays as they began
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
        self.remove = choose("position", position, {"keep": False, "remove": True})
        self.pixels, self.copied = space == "pixels", space.split(".")[0] == "teacher"
        self.level = "" if space in ("raw", "pixels") else space.removeprefix("teacher").removeprefix(".")
        self.standardise = standardise or self.pixels
        owner, field = "teacher." if self.copied else "", f"levels.{self.level}" if self.level else "tokens"
        seen = set() if self.pixels else {f"{owner}image_raw.{field}"}
        needs = {"image": {"image.tokens"} | seen, "report": {"text.sentence", f"{owner}text_raw.sentence"}}
        self.needs = frozenset().union(*(choose("sides", side, needs) for side in sides))
        if not 0 <= teacher_decay <= 1:
            raise ConfigError(f"intra_modal: teacher_decay is a share, from 0 to 1, not {teacher_decay}", "write teacher_decay: 0.99")
        self.teacher_decay = teacher_decay
        self.weight = {side: {"image": image_weight, "report": report_weight}[side] for side in sides}
        self.tau_teacher, self.tau_student, self.exclude_self = tau_teacher, tau_student, exclude_self
        self.fewest = 1 if form == "mse" and exclude_self else 2  # entries a row must have

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image_raw, text_raw = (pair.teacher.image, pair.teacher.text) if self.copied and pair.teacher else (pair.image_raw, pair.text_raw)
        terms = {}
        for side, weight in self.weight.items():
            if side == "image":
                one, after, view, before = pair.image, pair.image.tokens, pair.image.view, image_raw.tokens
                if self.level:
                    level = level_of(image_raw, self.level)
                    before = averaged(masked_zero(upcast(level.tokens), level.mask), level.grid, one.grid)
                elif self.pixels:
                    before = texture(batch.images.to(upcast(after).dtype), batch.view_mask, one.grid, one.mask.shape[1])
            else:
                one, view = pair.text.units["sentence"], None
                before, after = text_raw.units["sentence"].vectors, one.vectors
            weights = one.weights if self.pooling else None
            total, count = self.compare(before, after, one.mask, view, weights, batch.study, side == "image")
            terms[side] = (weight * total, count)
        return terms

    def compare(
        self, before: Tensor, after: Tensor, mask: Tensor, view: Tensor | None, weights: Tensor | None, study: Tensor, image: bool
    ) -> tuple[Tensor, Tensor]:
        """Features B N * before and after, mask B N, view B N, row weights B N, of images or not -> sum over studies, number of studies."""
        before = masked_zero(upcast(before.detach() if self.stop_gradient else before), mask)
        after = masked_zero(upcast(after), mask)
        if image and self.standardise:
            before = standardised(before, mask)
        teacher, pairs = self.teacher(before, mask, study, masked_pairs(mask, view))  # B N N both
        if self.exclude_self:
            pairs = pairs & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        student = cosine(after, after)
        if image and self.remove:
            teacher, student, pairs = special(teacher, student, pairs)
        rows = pairs.sum(-1) >= self.fewest  # B N
        each = self.form(teacher, student, pairs)  # B N
        return masked_mean(each.unsqueeze(-1), rows, weights).sum(), rows.any(1).sum().to(each.dtype)

    def kl(self, teacher: Tensor, student: Tensor, pairs: Tensor) -> Tensor:
        teacher, student = teacher / self.tau_teacher, student / self.tau_student
        log_p, log_q = masked_log_softmax(teacher, pairs), masked_log_softmax(student, pairs)  # both 0 where not a pair
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def mse(self, teacher: Tensor, student: Tensor, pairs: Tensor) -> Tensor:
        return ((student - teacher).square() * pairs).sum(-1) / pairs.sum(-1).clamp_min(1)


def special(teacher: Tensor, student: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """B N N each: both less their mean over the studies of all ranks that compare the same two places, and the pairs that two studies have."""
    sums = torch.stack([(teacher * pairs).sum(0), (student * pairs).sum(0), pairs.sum(0).to(student.dtype)])  # 3 N N
    places = slice(pairs.shape[-1])  # another rank's batch may have more views
    one, two, count = gather_padded(sums.unsqueeze(0), (2, 3)).sum(0)[:, places, places]
    return teacher - one / count.clamp_min(1), student - two / count.clamp_min(1), pairs & (count >= 2)


def level_of(image: ImageFeatures, level: str) -> Features:
    if level not in image.levels:
        raise ConfigError(
            f"intra_modal: space is '{level}', and the image encoder gives no such earlier map{nearest(level, image.levels)}",
            "add it to image.levels (image.levels=[4] of a CNN gives stride4, of a ViT block4), or set space: raw",
        )
    return image.levels[level]


def averaged(tokens: Tensor, fine: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """Tokens of the V views of a fine grid, B V*M D, averaged to those of a coarser one: B V*N D."""
    maps = tokens.unflatten(1, (-1, *fine)).flatten(0, 1).movedim(-1, 1)  # B*V D *S
    pool = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    return pool(maps, list(grid)).flatten(2).transpose(1, 2).reshape(len(tokens), -1, tokens.shape[-1])


def texture(images: Tensor, view_mask: Tensor, grid: tuple[int, ...], tokens: int) -> Tensor:
    """Images B V C *S -> what each token's pixels look like on average, B N F: grey, |grey less that of the neighbours|, and along each axis
    |grey less that of the next pixel|. Of fused views (N tokens of one view) the mean."""
    flat = images.mean(2).flatten(0, 1).unsqueeze(1)  # B*V 1 *S
    axes, blur = range(2, flat.ndim), F.avg_pool2d if len(grid) == 2 else F.avg_pool3d
    steps = [torch.cat([flat.diff(dim=a).abs(), torch.zeros_like(flat.narrow(a, 0, 1))], a) for a in axes]
    fine = (flat - blur(flat, 3, stride=1, padding=1, count_include_pad=False)).abs()
    maps = torch.cat([flat, fine, *steps], 1)  # B*V F *S
    pixels = maps.movedim(1, -1).flatten(1, -2).unflatten(0, images.shape[:2]).flatten(1, 2)  # B V*M F
    found = averaged(pixels, tuple(images.shape[3:]), grid)  # B V*N F
    across = found.unflatten(1, (images.shape[1], -1)).transpose(1, 2)  # B N V F
    return found if found.shape[1] == tokens else masked_mean(across, view_mask.unsqueeze(1).expand(across.shape[:3]))


def standardised(x: Tensor, mask: Tensor) -> Tensor:
    """B N D, zero where not real: each feature less its mean, by its standard deviation, over the real tokens of all ranks."""
    sums = torch.stack([x.sum((0, 1)), x.square().sum((0, 1)), mask.sum().to(x.dtype).expand(x.shape[-1])])  # 3 D
    one, two, count = gather(sums.unsqueeze(0)).sum(0)
    mean = one / count.clamp_min(1)
    variance = two / count.clamp_min(1) - mean.square()
    return masked_zero((x - mean) * torch.rsqrt(variance.clamp_min(1e-6)), mask)


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
