"""Word to region, all pairs: every word of every report looks for itself in every image; the best-found words speak for the pair.

    s_rt = v_r . w_t                     region r, word t
    a_rt = softmax_r( 4 softmax_t s_rt )                    over the words first, then over the regions
    c_t  = sum_r a_rt v_r
    Z    = log sum_t exp( 5 cos(w_t, c_t) )
    L    = NCE of 10 Z, image to text and text to image     GLoRIA, Huang et al., ICCV 2021

No D-wide context is built and no B B T R D tensor anywhere: elvis.kernels.word_region has the algebra, its gradient and the engines.
Patches stay on their rank: gathered texts meet local images, then the W*B x W*B similarities are gathered for the text rows. Studies of one
group or with one text are not negatives (`equal_text: negative`: one text is, as GLoRIA has it). `targets` soft and mined let other studies with
alike reports be right, too: ours here, with the formulas of elvis.objectives._shared.
"""

from __future__ import annotations

from torch import Tensor, nn

from elvis.distributed import gather, gather_padded, own_rows
from elvis.errors import ConfigError
from elvis.kernels.word_region import ENGINES, word_region_similarity
from elvis.objectives._shared import StudyTargets, choose, matched
from elvis.ops import masked_mean, masked_softmax, masked_zero, normalize, upcast
from elvis.registry import OBJECTIVES
from elvis.types import Batch, ImageFeatures, Pair, TextFeatures


@OBJECTIVES.register("word_region")
class WordRegion(nn.Module):
    """Terms `image_to_text` and `text_to_image`, each a mean over studies with a region and a word. GLoRIA adds them."""

    def __init__(
        self,
        *,
        attention: str = "dot",  # GLoRIA: raw products. cosine: of unit vectors (then score_scale about 10, the ablation's)
        score_scale: float = 1.0,  # of s; GLoRIA: none
        attention_scale: float = 4.0,  # GLoRIA's temp1
        word_scale: float = 5.0,  # GLoRIA's temp2
        logit_scale: float = 10.0,  # GLoRIA's temp3
        engine: str = "auto",  # dense | chunked | triton: changes time and memory, not the result
        targets: str = "own",  # GLoRIA; or soft, mined (see elvis.objectives._shared)
        equal_text: str = "ignore",  # ours; negative = GLoRIA
        alpha: float = 0.5,  # of the soft target, SO-ITC
        target_temperature: float = 0.1,  # of the soft target; ours
        threshold: float = 0.9,  # of the mined positives; ours
    ) -> None:
        super().__init__()
        if not 0 < attention_scale <= 30:  # the square of its exponential must stay in fp32
            raise ConfigError(f"word_region with attention_scale {attention_scale}", "it lies above 0 and is at most 30; GLoRIA's is 4")
        self.prepare = choose("attention", attention, {"dot": itself, "cosine": unit})
        self.scales = {"score_scale": score_scale, "attention_scale": attention_scale, "word_scale": word_scale}
        self.logit_scale = logit_scale
        self.engine = choose("engine", engine, {name: name for name in ENGINES})
        self.targets = StudyTargets(
            "word_region",
            targets=targets, equal_text=equal_text, alpha=alpha, target_temperature=target_temperature, threshold=threshold,
        )  # fmt: skip
        self.detached = self.targets.needs
        self.needs = self.detached | {"image.tokens", "text.word"}

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image, word = pair.image, pair.text.units["word"]
        regions = self.prepare(masked_zero(image.tokens, image.mask))  # B R D
        words, word_mask = gather_padded(self.prepare(masked_zero(word.vectors, word.mask))), gather_padded(word.mask)  # W*B T D
        local = self.logit_scale * word_region_similarity(words, regions, word_mask, image.mask, engine=self.engine, **self.scales)  # B W*B

        real = image.mask.any(1) & word.mask.any(1)  # B
        right = self.targets(pair, batch, real)  # B W*B each
        own_texts = gather(local)[:, own_rows(len(batch), real.device)].T  # B W*B: rows are this rank's texts, columns all images
        by_image, by_text = matched(local, *right), matched(own_texts, *right)
        count = real.sum().to(local.dtype)
        return {"image_to_text": (by_image.sum(), count), "text_to_image": (by_text.sum(), count)}

    def attention(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Where phrase b looks in image b, the mean of its words (the mean is ours): image B N D, text of one sentence each -> B N, sum 1."""
        word = text.units["word"]
        regions, words = (upcast(self.prepare(masked_zero(x, mask))) for x, mask in ((image.tokens, image.mask), (word.vectors, word.mask)))
        s = self.scales["score_scale"] * words @ regions.mT  # B T N
        e = self.scales["attention_scale"] * masked_softmax(s, word.mask.unsqueeze(-1), dim=-2)
        return masked_mean(masked_softmax(e, image.mask.unsqueeze(-2)), word.mask)


def itself(x: Tensor) -> Tensor:
    return x


def unit(x: Tensor) -> Tensor:
    """Unit vectors, in the precision of the features."""
    return normalize(x).to(x.dtype)
