"""Prototypes of studies: an image tells the code of its report, a report that of its image.

    s_ik = cos(v_i, c_k)       v: pooled and projected image (or report), c: K learned prototypes
    q    = Sinkhorn( exp(s / epsilon) ):  in turns, each prototype gets as much as any other of all studies, each study gives 1
    L_i  = - sum_k q_k(other side of i) log softmax_k( s_ik / tau )

The disease-level half of MGCA (Wang et al., NeurIPS 2022), its released code read: SwAV's swapped prediction (arXiv 2006.09882) between modalities,
each with a Sinkhorn of its own, K = 500, epsilon .05, 3 turns, tau .2, codes without gradient, one set of prototypes. What differs on purpose:
 - prototypes are normalised where they are used, so that the gradient knows of it; the code normalises them in place before each step;
 - they learn from the first step on; there they stand still for one epoch;
 - the Sinkhorn runs on logarithms: the same codes, no overflow at a small epsilon. It sees the studies of all ranks (so does the code's);
 - a study without an image or without a report has no code, and takes nothing of a prototype.
No study is a negative of another here, so that equal reports need no care: they have equal codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elvis.distributed import gather, own_rows
from elvis.errors import ConfigError
from elvis.ops import dots, masked_log_softmax, masked_zero, normalize, soft_cross_entropy
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair


@OBJECTIVES.register("prototype_swap")
class PrototypeSwap(nn.Module):
    """Terms `image_to_text_code` and `text_to_image_code`, each a mean over studies that have an image and a report, times its weight.

    MGCA weighs it like its global loss, which is twice ours: `weight: 0.5` beside a global_contrastive of 1 (or .25, by its constructor).
    """

    needs = frozenset({"image.pooled", "text.pooled"})

    def __init__(
        self,
        *,
        width: int,  # D of the shared space
        prototypes: int = 500,  # K, MGCA
        temperature: float = 0.2,  # tau, MGCA
        epsilon: float = 0.05,  # of the Sinkhorn, MGCA: the smaller, the harder the codes
        iterations: int = 3,  # its turns, MGCA
        image_to_text: float = 0.5,  # weight of the direction; MGCA: the mean of both
        text_to_image: float = 0.5,
    ) -> None:
        super().__init__()
        if not (prototypes > 1 and temperature > 0 and epsilon > 0 and iterations >= 0):
            raise ConfigError(
                f"prototype_swap with prototypes {prototypes}, temperature {temperature}, epsilon {epsilon}, iterations {iterations}",
                "prototypes are 2 or more, temperature and epsilon lie above 0, iterations not below",
            )
        self.prototypes = nn.Parameter(normalize(torch.randn(prototypes, width)))  # K D, in any direction
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.weight = {"image_to_text_code": image_to_text, "text_to_image_code": text_to_image}

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        real = pair.image.mask.any(1) & batch.units["report"].mask[:, 0]  # B
        prototypes = normalize(self.prototypes)
        image, text = (dots(normalize(masked_zero(side.pooled, real)), prototypes) for side in (pair.image, pair.text))  # B K
        terms = {}
        for name, scores, other in (("image_to_text_code", image, text), ("text_to_image_code", text, image)):
            each = soft_cross_entropy(scores / self.temperature, self.codes(other, real), real.unsqueeze(-1))  # B
            terms[name] = (self.weight[name] * each.sum(), real.sum().to(each.dtype))
        return terms

    @torch.no_grad()
    def codes(self, scores: Tensor, real: Tensor) -> Tensor:
        """What each study gives to each prototype, B K: rows sum to 1 where real (B), of a Sinkhorn over the studies of all ranks."""
        return sinkhorn(gather(scores) / self.epsilon, gather(real), self.iterations)[own_rows(len(real), real.device)]


def sinkhorn(logits: Tensor, real: Tensor, iterations: int) -> Tensor:
    """Codes of studies, logits N K, real N bool -> N K: columns made equal, then rows made to sum to 1, `iterations` times; 0 where not real."""
    for _ in range(iterations):
        logits = masked_log_softmax(logits, real.unsqueeze(-1), dim=0).log_softmax(-1)
    return logits.softmax(-1) * real.unsqueeze(-1)
