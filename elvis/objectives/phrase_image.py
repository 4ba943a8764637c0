"""Phrase to image: every sentence looks for itself in every image; what it finds must tell its own image from the others.

    a_nir = softmax_r( s cos(t_n, v_ir) )          sentence n attends the tokens r of image i
    l_ni  = s cos(t_n, sum_r a_nir v_ir)           unit vectors v, s: one learned scale for both

    sentence_to_image   rows n, multi-positive NCE over images
    image_to_sentence   rows i, multi-positive NCE over the sentences of the batch

VL-CABS with the MP-NCE of RadZero (arXiv 2504.07416). Ours: an image is a positive of every sentence its report contains
word by word, so that the same sentence in two reports is a positive of both images (`equal_text: negative`: only that of its own study is, the other
is a negative); studies of one group are not negatives; and every image counts once in `image_to_sentence` (RadZero: every sentence once).

`targets: similarity` lets sentences that say nearly the same share, as the soft positives of ELVIS' reconstruction do inside one study. Ours:

    A_ni = max over sentences m of report i of  cos(y_n, y_m)          y: sentences before projection, without gradient
    q    = (1 - alpha) uniform over the positives + alpha softmax( A / target_temperature )
    L    = cross entropy of q with softmax(l), over positives and negatives

with q and both softmaxes over the images i for rows n, over the sentences n for rows i: one A for both directions. Its positives compete with each
other, those of `equal` do not.

Patches stay on their rank: the sentences of all ranks are gathered and scored against local images (elvis.kernels.word_region: no N B R D
tensor); the N x B logits are gathered for the rows, of which each rank keeps its own sentences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from elvis.distributed import gather, gather_padded, own_rows
from elvis.kernels.word_region import attended_cosine
from elvis.objectives._shared import check_share, choose, nearest_said, rows_to_compare, says
from elvis.ops import attend, held_exp, info_nce, masked_softmax, masked_zero, normalize, soft_cross_entropy
from elvis.registry import OBJECTIVES
from elvis.types import Batch, ImageFeatures, Pair, TextFeatures


@OBJECTIVES.register("phrase_image")
class PhraseImage(nn.Module):
    """Terms `sentence_to_image` (mean over sentences) and `image_to_sentence` (mean over images with a sentence), times their weights."""

    max_scale = 100.0  # CLIP

    def __init__(
        self,
        *,
        sentence_to_image: float = 0.5,  # weight of the direction; RadZero: the mean of both
        image_to_sentence: float = 0.5,
        scale: float = 1 / 0.07,  # start of s, RadZero
        equal_text: str = "positive",  # ours; negative = an image knows the sentences of its own report alone
        targets: str = "equal",  # all positives alike, RadZero; or similarity, ours
        alpha: float = 0.5,  # of the similarity in the target; ours, after SO-ITC
        target_temperature: float = 0.1,  # of the similarity; ours
    ) -> None:
        super().__init__()
        check_share("phrase_image", alpha, target_temperature)
        self.equal_text = choose("equal_text", equal_text, {"positive": True, "negative": False})
        self.similarity = choose("targets", targets, {"equal": False, "similarity": True})
        self.alpha, self.temperature = alpha, target_temperature
        self.detached = frozenset({"text_raw.sentence"} if self.similarity else ())  # what it reads without training it
        self.needs = self.detached | {"image.tokens", "text.sentence"}
        self.weight = {"sentence_to_image": sentence_to_image, "image_to_sentence": image_to_sentence}
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image, sentence = pair.image, pair.text.units["sentence"]
        mask, group = gather_padded(sentence.mask), gather_padded(sentence.group)  # W*B U
        rows = rows_to_compare(mask)  # N
        real, owner = mask.flatten()[rows], rows // mask.shape[1]  # N; owner: the study a sentence is of
        sentences = normalize(gather_padded(masked_zero(sentence.vectors, sentence.mask)).flatten(0, 1)[rows])  # N D
        tokens = normalize(masked_zero(image.tokens, image.mask))  # B R D
        scale = held_exp(self.log_scale, self.max_scale, self.training)
        local = phrase_image_logits(sentences, tokens, image.mask, scale)  # B N
        logits = gather(local)  # W*B N

        said = says(group, mask, rows) if self.equal_text else torch.arange(len(mask), device=real.device)[:, None] == owner  # W*B N
        seen, study = gather(image.mask.any(1))[:, None] & real, gather(batch.study)  # W*B N, W*B
        positive = said & seen  # W*B N
        negative = ~said & seen & (study[:, None] != study[owner])

        own = own_rows(len(batch), real.device)
        mine = torch.isin(owner, own)  # the sentences of this rank; those of others are no one's positive here
        near = self.near(pair, mask, rows) if self.similarity else None  # W*B N
        by_image = self.compare(local, positive[own], negative[own], None if near is None else near[own], 1)  # B
        by_sentence = self.compare(logits, positive & mine, negative, near, 0)  # N
        return {
            "sentence_to_image": (self.weight["sentence_to_image"] * by_sentence.sum(), (positive & mine).any(0).sum().to(local.dtype)),
            "image_to_sentence": (self.weight["image_to_sentence"] * by_image.sum(), positive[own].any(1).sum().to(local.dtype)),
        }

    def near(self, pair: Pair, mask: Tensor, rows: Tensor) -> Tensor:
        """How alike is to a sentence (`rows` N of the W*B U that `mask` says are real) the nearest one of each report: W*B N."""
        raw = pair.text_raw.units["sentence"]
        return nearest_said(normalize(gather_padded(masked_zero(raw.vectors.detach(), raw.mask))), mask, rows)

    def compare(self, logits: Tensor, positive: Tensor, negative: Tensor, near: Tensor | None, dim: int) -> Tensor:
        """Loss of the rows whose columns lie along `dim`: InfoNCE, or the cross entropy with the target that `near` shares out."""
        if near is None:
            return info_nce(logits, positive, negative, dim)
        both = positive | negative
        equal = positive.to(logits.dtype) / positive.sum(dim, keepdim=True).clamp_min(1)
        target = self.alpha * masked_softmax(near / self.temperature, both, dim) + (1 - self.alpha) * equal
        return soft_cross_entropy(logits, target * positive.any(dim, keepdim=True), both, dim)

    def attention(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Where phrase b looks in image b: image B N D, text of one sentence each -> B N, sum 1 over real tokens."""
        tokens, sentence = normalize(masked_zero(image.tokens, image.mask)), normalize(text.units["sentence"].vectors[:, :1])
        return attend(sentence, tokens, tokens, image.mask, held_exp(self.log_scale, self.max_scale, False))[1][:, 0]


def phrase_image_logits(sentences: Tensor, tokens: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """Unit sentences N D against the unit tokens B R D of images with mask B R -> logits B N."""
    return scale * attended_cosine(scale * sentences, tokens, mask)
