"""Tokens inside one study, with an attention that has no parameters: what the report says of a region, what the image shows of a word.

    h_k  = sum_m softmax_m( cos(z_k, u_m) / tau ) u_m        what is said of region k, unit vectors; and the reverse for a word
    L    = sum_k w_k CE( p_k , softmax_l( cos(z_k, h_l) / tau ) )        regions k against contexts l, and contexts against regions
    p_kl = one-hot   |   softmax_l( cos(y_k, y_l) / t )      y: before projection

The token-wise half of MGCA (Wang et al., NeurIPS 2022), its released code read: one tau for attention and loss, w the attention of the last layer's
[CLS] held between its 10 and 90 % quantiles (the tokens of a ResNet all alike), the mean of two directions on each side. All negatives lie inside
the study. Its attention may have learned maps (`use_local_atten`); by default, as ours, it has none. What differs on purpose:
 - padding is no column, and quantiles are those of real tokens (there words are compared with the padding behind them, too; [SEP] is a word);
 - w are the weights of our attention pool. It weighs regions and sentences, not words: they count alike;
 - a word is no negative of one that reads the same elsewhere in its report;
 - positives that follow content (`similarity`, both sides): a reconstruction of ELVIS (arXiv 2304.05303), whose formula is not public.
Several views: regions are compared within their view, words look at all of them. LoVT's sibling with learned maps is `sentence_region`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elvis.errors import ConfigError
from elvis.objectives._shared import by_similarity, choose, itself_alone
from elvis.ops import attend, cosine, masked_mean, masked_pairs, masked_zero, normalize, soft_cross_entropy, upcast
from elvis.registry import OBJECTIVES
from elvis.types import Batch, ImageFeatures, Pair, TextFeatures


@OBJECTIVES.register("token_pair")
class TokenPair(nn.Module):
    """Terms `region_to_context`, `context_to_region`, `unit_to_context`, `context_to_unit`: means over studies with both, times their weight.

    MGCA weighs the sum like its global loss, which is twice ours: `weight: 0.5` beside a global_contrastive of 1 (or .35, by its constructor).
    """

    def __init__(
        self,
        *,
        unit: str = "word",  # MGCA; or sentence
        temperature: float = 0.1,  # tau, MGCA
        positives: str = "one_hot",  # MGCA; or similarity, on both sides
        positive_temperature: float = 0.1,  # t, ours
        weights: str = "pooling",  # w: of the pool, or uniform
        clip: float = 0.1,  # they are held between this quantile and its mirror, MGCA; 0 = as they are
        image_weight: float = 0.5,  # of each term of regions; MGCA: the mean of two
        text_weight: float = 0.5,  # of each term of units
    ) -> None:
        super().__init__()
        if not (temperature > 0 and positive_temperature > 0 and 0 <= clip <= 0.5):
            raise ConfigError(
                f"token_pair with temperature {temperature}, positive_temperature {positive_temperature}, clip {clip}",
                "temperatures lie above 0, clip in [0, 0.5]",
            )
        self.unit = choose("unit", unit, {"word": "word", "sentence": "sentence"})
        self.positives = choose("positives", positives, {"one_hot": self.one_hot, "similarity": self.similarity})
        self.weigh = choose("weights", weights, {"pooling": self.pooling, "uniform": self.uniform})
        self.temperature, self.positive_temperature, self.clip = temperature, positive_temperature, clip
        self.image_weight, self.text_weight = image_weight, text_weight
        raw = {"image_raw.tokens", f"text_raw.{unit}"} if positives == "similarity" else set()
        self.needs = frozenset({"image.tokens", f"text.{unit}"} | raw)

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image, unit = pair.image, pair.text.units[self.unit]
        regions, units = normalize(masked_zero(image.tokens, image.mask)), normalize(masked_zero(unit.vectors, unit.mask))  # B N D, B U D
        said = attend(regions, units, units, unit.mask, 1 / self.temperature)[0]  # B N D, what the report says of each region
        shown = attend(units, regions, regions, image.mask, 1 / self.temperature)[0]  # B U D, what the image shows of each unit
        near, apart = masked_pairs(image.mask, image.view), different(unit.group, unit.mask)  # B N N, B U U
        both = image.mask.any(1) & unit.mask.any(1)  # B
        terms = {}
        for name, rows, contexts, pairs, raw, side, weight in (
            ("region", regions, said, near, pair.image_raw.tokens, image, self.image_weight),
            ("unit", units, shown, apart, pair.text_raw.units[self.unit].vectors, unit, self.text_weight),
        ):
            target, w = self.positives(pairs, raw), self.weigh(side.weights, side.mask)  # B N N, B N or None
            logits = cosine(rows, contexts) / self.temperature  # B N N
            for term, s in ((f"{name}_to_context", logits), (f"context_to_{name}", logits.mT)):
                each = soft_cross_entropy(s, target, pairs).unsqueeze(-1)  # B N 1
                study = masked_mean(each, side.mask & both.unsqueeze(-1), w)  # B 1
                terms[term] = (weight * study.sum(), both.sum().to(each.dtype))
        return terms

    def attention(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Where phrase b looks in image b, the mean of its units (the mean is ours): image B N D, text of one sentence each -> B N, sum 1."""
        unit = text.units[self.unit]
        regions, units = normalize(masked_zero(image.tokens, image.mask)), normalize(masked_zero(unit.vectors, unit.mask))
        return masked_mean(attend(units, regions, regions, image.mask, 1 / self.temperature)[1], unit.mask)

    # Positives: comparable pairs B N N, features before projection B N * -> p, rows sum to 1 over real columns.

    def one_hot(self, pairs: Tensor, raw: Tensor) -> Tensor:
        return itself_alone(pairs)

    def similarity(self, pairs: Tensor, raw: Tensor) -> Tensor:
        return by_similarity(pairs, raw, self.positive_temperature)

    # Weights: those of the pool B N or None, what is real B N -> B N; None = all alike.

    def pooling(self, weights: Tensor | None, mask: Tensor) -> Tensor | None:
        return weights if weights is None or not self.clip else between_quantiles(weights, mask, self.clip)

    def uniform(self, weights: Tensor | None, mask: Tensor) -> None:
        return None


def different(group: Tensor, mask: Tensor) -> Tensor:
    """Which units of a report may be compared: real ones that do not read the same, and each with itself, B U -> B U U bool."""
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return masked_pairs(mask) & (itself | (group.unsqueeze(-1) != group.unsqueeze(-2)))


def between_quantiles(weights: Tensor, mask: Tensor, share: float) -> Tensor:
    """Weights held between the quantiles `share` and 1 - `share` of the real ones of their row (linear, as torch.quantile), B N -> B N."""
    weights = upcast(weights)
    in_order = weights.masked_fill(~mask, torch.finfo(weights.dtype).max).sort(-1).values  # the real ones first
    last = (mask.sum(-1, keepdim=True) - 1).clamp_min(0)  # B 1

    def quantile(q: float) -> Tensor:
        place = q * last.to(weights.dtype)
        below, above = in_order.gather(-1, place.floor().long()), in_order.gather(-1, place.ceil().long())
        return below.lerp(above, place - place.floor())

    return weights.clamp(quantile(share), quantile(1 - share))
