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

There, `targets: soft` gives sentences of other studies that say nearly the same a share (ours, after SO-ITC's mixed target, arXiv 2603.04878): of the
two sentence terms

    q_ml = (1 - alpha) p_ml + alpha softmax( cos(y_m, y_l) / target_temperature )      y: sentences before projection, without gradient

over the own sentences and those of others that are negatives otherwise (p is 0 there). Of the others a row then needs two numbers more, the log of
the sum of e^(cos / target_temperature) and the mean of s under that softmax.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from elvis.distributed import gather_padded
from elvis.errors import ConfigError
from elvis.objectives._shared import by_similarity, check_share, choose, in_chunks, itself_alone, study_pairs
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
        targets: str = "own",  # of a sentence with negatives: batch; soft = alike ones of other studies share it
        alpha: float = 0.5,  # of that share, SO-ITC
        target_temperature: float = 0.1,  # of that share; ours
        chunk: int = 512,  # rows that meet the columns of other studies at once. Changes memory, not the result
    ) -> None:
        super().__init__()
        check_share("sentence_region", alpha, target_temperature)
        self.soft, self.alpha, self.target_temperature = choose("targets", targets, {"own": False, "soft": True}), alpha, target_temperature
        self.across, self.chunk = choose("negatives", negatives, {"study": False, "batch": True}), chunk
        self.positives = choose("positives", positives, {"one_hot": self.one_hot, "distance": self.distance, "similarity": self.similarity})
        self.report_positives = choose("report_positives", report_positives, {"one_hot": self.one_hot, "similarity": self.similarity})
        self.temperature, self.positive_temperature = temperature, positive_temperature
        self.threshold, self.decay = Fraction(str(threshold)), decay
        self.image_weight, self.report_weight = image_weight, report_weight
        self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        if self.soft and not self.across:
            raise ConfigError("sentence_region with targets soft compares no studies", "set negatives: batch, or targets: own")
        raw = {"image_raw.tokens": positives == "similarity", "text_raw.sentence": report_positives == "similarity" or self.soft}
        self.detached = frozenset(need for need, read in raw.items() if read)  # what it reads without training it
        self.needs = self.detached | {"image.tokens", "text.sentence"}

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
        raw = normalize(masked_zero(pair.text_raw.units["sentence"].vectors.detach(), text.mask)) if self.soft else None  # B U *
        terms = {}
        for names, rows, columns, target, pairs, one, kinds, alike, weight in (
            (("region_to_context", "context_to_region"), regions, said, of_region, near, image, None, None, self.image_weight),
            (("sentence_to_context", "context_to_sentence"), sentences, shown, of_sentence, same, text, text.group, raw, self.report_weight),
        ):
            logits = cosine(rows, columns) / self.temperature  # B N N
            for name, s, here, there in ((names[0], logits, rows, columns), (names[1], logits.mT, columns, rows)):
                each = soft_cross_entropy(s, target, pairs)  # B N
                if others is not None:
                    inside, (outside, *far) = masked_logsumexp(s, pairs), self.elsewhere(here, there, one.mask, kinds, others, alike)  # B N each
                    whole = torch.logaddexp(inside, outside)
                    each = each + target.sum(-1) * (whole - inside)
                    each = each if alike is None else (1 - self.alpha) * each + self.alpha * self.shared(s, pairs, alike, whole, *far)
                study = masked_mean(each.unsqueeze(-1), one.mask & both.unsqueeze(-1), one.weights)  # B 1
                terms[name] = (weight * study.sum(), both.sum().to(each.dtype))
        return terms

    def elsewhere(
        self, rows: Tensor, columns: Tensor, mask: Tensor, kinds: Tensor | None, others: Tensor, raw: Tensor | None
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """log sum of e^s over the columns of other studies: rows and columns B N D, mask B N, groups B N or None, other studies B W*B -> B N.

        raw: unit vectors B N * before projection, or None; then also the log sum of e^(their cosines) and the mean of s under that softmax, B N each.
        """
        columns, there = normalize(gather_padded(columns)).flatten(0, 1), gather_padded(mask)  # W*B*N' D, W*B N'
        equal_to = None if kinds is None else gather_padded(kinds).flatten()
        own, like = ((), None) if raw is None else ((raw.flatten(0, 1),), gather_padded(raw).flatten(0, 1))  # B*N *, W*B*N' *

        def score(some: Tensor, other: Tensor, kind: Tensor, *own: Tensor) -> Tensor:  # n D, n W*B, n, perhaps n * -> 1 n or 3 n
            part = (other.unsqueeze(-1) & there).flatten(1)  # n W*B*N'
            part = part if equal_to is None else part & (kind.unsqueeze(-1) != equal_to)
            s = dots(some, columns) / self.temperature
            found = [masked_logsumexp(s, part)]
            for vectors in own:
                near = dots(vectors, like) / self.target_temperature
                found += [masked_logsumexp(near, part), (masked_softmax(near, part) * s).sum(-1)]
            return torch.stack(found)

        kinds = torch.zeros_like(mask, dtype=torch.int64) if kinds is None else kinds
        each = others.repeat_interleave(mask.shape[1], 0)  # B*N W*B
        found = in_chunks(score, normalize(rows).flatten(0, 1), each, kinds.flatten(), *own, chunk=self.chunk)  # 1 B*N or 3 B*N
        return found.unflatten(1, mask.shape).unbind()

    def shared(self, s: Tensor, pairs: Tensor, raw: Tensor, whole: Tensor, far: Tensor, mean: Tensor) -> Tensor:
        """Cross entropy, B U, with the softmax of the cosines of `raw` B U * over own sentences (pairs B U U) and those of others.

        s B U U; whole B U, the log sum of e^s over all of them; far and mean B U, what `elsewhere` found beside.
        """
        near = dots(raw, raw) / self.target_temperature  # B U U
        total = torch.logaddexp(masked_logsumexp(near, pairs), far)
        target = (near - total.unsqueeze(-1)).exp().masked_fill(~pairs, 0.0)
        return whole - (target * s).sum(-1) - (far - total).exp() * mean

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
        return by_similarity(pairs, raw, self.positive_temperature)

    def one_hot(self, pairs: Tensor, grid: tuple[int, ...], raw: Tensor) -> Tensor:
        return itself_alone(pairs)
