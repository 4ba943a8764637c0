"""Global contrast: the image of a study against the reports of the batch, and its report against the images.

    l_ij = s cos(v_i, t_j)                 v, t: pooled and projected image and report, s: the model's learned scale

    softmax   L_i = -log( e^{l_ii} / (e^{l_ii} + sum_{j in Neg(i)} e^{l_ij}) )                ConVIRT 2010.00747, CLIP 2103.00020
    sigmoid   L_i = softplus(-(l_ii + b)) + sum_{j in Neg(i)} softplus(l_ij + b)              SigLIP 2303.15343, b learned

Rows are images for `image_to_text`, reports for `text_to_image`. Neg(i): other studies with another text; studies of the
same group, or with the same report ("No acute findings."), are ignored (`equal_text: negative`: the same report is a negative, as published). With
equal weights the two directions of the sigmoid form add up to SigLIP's one sum over pairs. Local rows meet the columns of all ranks.

What is right need not be the own study alone: with the target q of `targets: soft`, or the positives of `targets: mined` (formulas and sources
in elvis.objectives._shared),

    softmax   L_i = - sum_{j in C_i} q_ij log softmax_{C_i}(l_i)_j                    soft, C_i = {i} + Neg(i)
              L_i = mean_{p in Pos(i)} -log( e^{l_ip} / (e^{l_ip} + sum_{Neg(i)} e^{l_ij}) )         mined
    sigmoid   L_i = sum_{j in C_i} q_ij softplus(-(l_ij + b)) + (1 - q_ij) softplus(l_ij + b)        soft; mined: q = 1 for Pos(i), 0 for Neg(i)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from elvis.distributed import gather
from elvis.objectives._shared import StudyTargets, choose, matched
from elvis.ops import masked_zero, normalize
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair


@OBJECTIVES.register("global_contrastive")
class GlobalContrastive(nn.Module):
    """Terms `image_to_text` and `text_to_image`, each a mean over studies that have an image and a report, times its weight."""

    def __init__(
        self,
        *,
        form: str = "softmax",
        image_to_text: float = 0.5,  # weight of the direction; CLIP: the mean of both. ConVIRT and LoVT: .75 and .25
        text_to_image: float = 0.5,
        bias: float = -10.0,  # start of b, sigmoid form only (SigLIP: nearly all pairs are negatives)
        targets: str = "own",  # CLIP, ConVIRT, SigLIP; or soft (SO-ITC), mined (FaNe)
        equal_text: str = "ignore",  # ours; negative = as published
        alpha: float = 0.5,  # of the soft target, SO-ITC
        target_temperature: float = 0.1,  # of the soft target; ours
        threshold: float = 0.9,  # of the mined positives; ours
    ) -> None:
        super().__init__()
        self.compare = choose("form", form, {"softmax": matched, "sigmoid": self.sigmoid})
        self.targets = StudyTargets(
            "global_contrastive",
            targets=targets, equal_text=equal_text, alpha=alpha, target_temperature=target_temperature, threshold=threshold,
        )  # fmt: skip
        self.detached = self.targets.needs
        self.needs = self.detached | {"image.pooled", "text.pooled", "scale"}
        self.weight = {"image_to_text": image_to_text, "text_to_image": text_to_image}
        self.bias = nn.Parameter(torch.tensor(bias)) if form == "sigmoid" else None

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        real = pair.image.mask.any(1) & batch.units["report"].mask[:, 0]  # B
        right = self.targets(pair, batch, real)  # B W*B each
        image, text = (normalize(masked_zero(side.pooled, real)) for side in (pair.image, pair.text))  # B D
        terms = {}
        for name, rows, columns in (("image_to_text", image, text), ("text_to_image", text, image)):
            logits = pair.scale * rows @ gather(columns).T  # B W*B
            each = self.compare(logits, *right)  # B
            terms[name] = (self.weight[name] * each.sum(), real.sum().to(each.dtype))
        return terms

    def sigmoid(self, logits: Tensor, positive: Tensor, negative: Tensor, target: Tensor | None) -> Tensor:
        """Each pair is a yes-or-no question: B M -> B, summed over the pairs that are one or the other, or something between."""
        logits = logits + self.bias
        yes, no = (positive, negative) if target is None else (target, (positive | negative).to(target.dtype) - target)
        return -(logsigmoid(logits) * yes + logsigmoid(-logits) * no).sum(-1)
