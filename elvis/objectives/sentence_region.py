"""Sentence to region inside one study: each region meets what the report says of it, each sentence what the image shows of it.

    h_k   = LN O( sum_m softmax_m( K z_k . K z_m / sqrt D ) V z_m )       a region k attends the sentences m; and the reverse
    L     = sum_k w_k  CE( p_k , softmax_l( cos(z_k, h_l) / tau ) )       regions against contexts, and contexts against regions
    p_kl  ~ exp(-lambda d_kl) where d_kl <= threshold                     d: distance on the grid, in diagonals

The local loss of LoVT (Mueller et al., ECCV 2022): key, value and output projections are shared by both modalities, w are
the attention-pool weights, all negatives lie inside the study (`negatives: study`). For sentences p is one-hot. Three things differ from its code:
 - LayerNorm after the output instead of BatchNorm: statistics over a batch would see padded sentences and depend on the world size;
 - the threshold is compared on integer squared distances: on an even grid some pairs lie exactly on it, and float decides them by chance;
 - the positives may follow content instead of position (`similarity`): p = softmax of the cosines before projection, a soft target from
   inside the modality. That is a reconstruction of ELVIS (arXiv 2304.05303), whose formula is not public.
Several views: regions are compared within their view only, since no distance between views is known.

`negatives: batch` is LoVT's cross_sample_negatives, which its code does not run: the softmax of a row goes over the columns of other studies, too,
those of all ranks; positives stay in the own study. Other studies: of another group, with another report, as everywhere; and a sentence is no
negative of one that reads the same. A row needs of the others no more than the log of a sum,

    L = - sum_l p_kl s_kl + log( sum_l e^s_kl + sum over others o of e^s_ko )        s = cos / tau

which is computed for `chunk` rows at a time and again in the backward: nothing of size (B N)^2 is kept.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from elvis.distributed import gather_padded
from elvis.objectives._shared import choose, in_chunks, study_pairs
from elvis.ops import (
    attend,
    cosine,
    dots,
    grid_distance,
    masked_logsumexp,
    masked_mean,
    masked_pairs,
    masked_softmax,
    masked_zero,
    normalize,
    soft_cross_entropy,
    upcast,
)
from elvis.registry import OBJECTIVES
from elvis.types import Batch, ImageFeatures, Pair, TextFeatures


@OBJECTIVES.register("sentence_region")
class SentenceRegion(nn.Module):
    """Terms `region_to_context`, `context_to_region`, `sentence_to_context`, `context_to_sentence`: means over studies with both.

    LoVT weighs each of the four .375 beside a global loss of 1: `weight: 0.375` in the config.
    """

    def __init__(
        self,
        *,
        width: int,
        positives: str = "distance",  # of a region: LoVT's smooth kernel | one_hot | similarity
        report_positives: str = "one_hot",  # of a sentence: LoVT | similarity
        temperature: float = 0.3,  # tau, LoVT
        threshold: float = 0.5,  # LoVT, in grid diagonals
        decay: float = 1.0,  # lambda, LoVT
        positive_temperature: float = 0.1,  # of the cosines before projection; ours
        image_weight: float = 1.0,  # of the two region terms
        report_weight: float = 1.0,  # of the two sentence terms
        negatives: str = "study",  # LoVT as published; batch = those of other studies, too
        chunk: int = 512,  # rows that meet the columns of other studies at once. Changes memory, not the result
    ) -> None:
        super().__init__()
        self.across, self.chunk = choose("negatives", negatives, {"study": False, "batch": True}), chunk
        self.positives = choose("positives", positives, {"one_hot": self.one_hot, "distance": self.distance, "similarity": self.similarity})
        self.report_positives = choose("report_positives", report_positives, {"one_hot": self.one_hot, "similarity": self.similarity})
        self.temperature, self.positive_temperature = temperature, positive_temperature
        self.threshold, self.decay = Fraction(str(threshold)), decay
        self.image_weight, self.report_weight = image_weight, report_weight
        self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        raw = {"image_raw.tokens": positives, "text_raw.sentence": report_positives}
        self.needs = frozenset({"image.tokens", "text.sentence"} | {need for need, p in raw.items() if p == "similarity"})

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image, text = pair.image, pair.text.units["sentence"]
        regions, sentences = masked_zero(upcast(image.tokens), image.mask), masked_zero(upcast(text.vectors), text.mask)  # B N D, B U D
        places, words = self.key(regions), self.key(sentences)
        said = self.context(places, words, sentences, text.mask)  # B N D, what the report says of each region
        shown = self.context(words, places, regions, image.mask)  # B U D, what the image shows of each sentence

        near, same = masked_pairs(image.mask, image.view), masked_pairs(text.mask)  # B N N, B U U
        of_region = self.positives(near, image.grid, pair.image_raw.tokens)  # B N N
        of_sentence = self.report_positives(same, (), pair.text_raw.units["sentence"].vectors)  # B U U

        both = image.mask.any(1) & text.mask.any(1)  # B
        others = study_pairs(batch, both)[1] if self.across else None  # B W*B
        terms = {}
        for names, rows, columns, target, pairs, one, kinds, weight in (
            (("region_to_context", "context_to_region"), regions, said, of_region, near, image, None, self.image_weight),
            (("sentence_to_context", "context_to_sentence"), sentences, shown, of_sentence, same, text, text.group, self.report_weight),
        ):
            logits = cosine(rows, columns) / self.temperature  # B N N
            for name, s, here, there in ((names[0], logits, rows, columns), (names[1], logits.mT, columns, rows)):
                each = soft_cross_entropy(s, target, pairs)  # B N
                if others is not None:
                    inside = masked_logsumexp(s, pairs)
                    each = each + target.sum(-1) * (torch.logaddexp(inside, self.elsewhere(here, there, one.mask, kinds, others)) - inside)
                study = masked_mean(each.unsqueeze(-1), one.mask & both.unsqueeze(-1), one.weights)  # B 1
                terms[name] = (weight * study.sum(), both.sum().to(each.dtype))
        return terms

    def elsewhere(self, rows: Tensor, columns: Tensor, mask: Tensor, kinds: Tensor | None, others: Tensor) -> Tensor:
        """log sum of e^s over the columns of other studies: rows and columns B N D, mask B N, groups B N or None, other studies B W*B -> B N."""
        columns, there = normalize(gather_padded(columns)).flatten(0, 1), gather_padded(mask)  # W*B*N' D, W*B N'
        equal_to = None if kinds is None else gather_padded(kinds).flatten()

        def score(some: Tensor, other: Tensor, kind: Tensor) -> Tensor:  # n D, n W*B, n -> 1 n
            part = (other.unsqueeze(-1) & there).flatten(1)  # n W*B*N'
            part = part if equal_to is None else part & (kind.unsqueeze(-1) != equal_to)
            return masked_logsumexp(dots(some, columns) / self.temperature, part).unsqueeze(0)

        kinds = torch.zeros_like(mask, dtype=torch.int64) if kinds is None else kinds
        each = others.repeat_interleave(mask.shape[1], 0)  # B*N W*B
        return in_chunks(score, normalize(rows).flatten(0, 1), each, kinds.flatten(), chunk=self.chunk).view_as(mask)

    def context(self, query: Tensor, keys: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """Each row attends the other modality: keys B N D of the rows, keys and vectors of the other B M D, mask B M -> B N D.

        An attention sums to 1, so that what is linear may come before it or after it: where there are fewer vectors.
        """
        if other.shape[1] < query.shape[1]:
            return self.norm(attend(query, keys, self.output(self.value(other)), mask)[0])
        return self.norm(self.output(self.value(attend(query, keys, other, mask)[0])))

    def attention(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Where phrase b looks in image b: image B N D, text of one sentence each -> B N, sum 1 over real tokens."""
        regions, sentence = masked_zero(upcast(image.tokens), image.mask), upcast(text.units["sentence"].vectors[:, :1])
        return attend(self.key(sentence), self.key(regions), regions, image.mask)[1][:, 0]

    # Positives: comparable pairs B N N, grid, features before projection B N * -> p, rows sum to 1 over real columns.

    def distance(self, pairs: Tensor, grid: tuple[int, ...], raw: Tensor) -> Tensor:
        squared, diagonal = grid_distance(grid, pairs.device), sum(n * n for n in grid)  # N N and a number, integers
        close = squared * self.threshold.denominator**2 <= self.threshold.numerator**2 * diagonal
        dtype = torch.promote_types(raw.dtype, torch.float32)
        kernel = torch.exp(-self.decay * (squared.to(dtype) / diagonal).sqrt()) * close
        views = pairs.shape[-1] // len(kernel)
        kernel = kernel.repeat(views, views) * pairs
        return kernel / kernel.sum(-1, keepdim=True).clamp_min(1.0)  # a real row holds itself: e^0 = 1

    def similarity(self, pairs: Tensor, grid: tuple[int, ...], raw: Tensor) -> Tensor:
        raw = masked_zero(raw.detach(), pairs.any(-1))
        return masked_softmax(cosine(raw, raw) / self.positive_temperature, pairs)

    def one_hot(self, pairs: Tensor, grid: tuple[int, ...], raw: Tensor) -> Tensor:
        return torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device) & pairs
