"""Text towers of open_clip: CLIP's own transformer, or one of transformers behind it (BiomedCLIP), with the projection into the images' space.

    ids, mask B L -> tower -> norm -> projection: tokens B L D; the first token, where [CLS] stands, holds the text's vector, open_clip's encode_text

With `text.context: sentence`, `model.sentence_pool: cls` and no projection of ours a sentence is what open_clip makes of it alone. CLIP reads
causally (a word knows what stands before it) and takes its vector at the end of the text, so the first and the last token change places; the
others stand for themselves. Towers that read their padding (SigLIP, CLIPA) or add a token behind the text (CoCa) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from elvis.backbones.open_clip import FORMS, config_and_weights, parts, refusals, resolve, take
from elvis.errors import ConfigError
from elvis.registry import TEXT_ENCODERS
from elvis.text import check_length
from elvis.text.hf import Hf

if TYPE_CHECKING:
    import tokenizers

SMALL_VISION = {"width": 8, "head_width": 8, "layers": 1, "patch_size": 8, "image_size": 8}  # beside a text tower that is wanted alone


@TEXT_ENCODERS.register("open_clip")
class OpenClipText(nn.Module):
    source = "model"  # the option that says where the tokenizer is

    def __init__(
        self,
        *,
        vocab_size: int | None = None,  # of the tokenizer; None = the tower's own
        model: str = "",  # ViT-B-32, local-dir:/path/to/folder, hf-hub:owner/name: the same as the image tower's
        weights: str = "",  # of a name: a tag of open_clip, or a file; without them it starts at random
        config: Mapping[str, Any] | None = None,  # or the model's config alone: {embed_dim, text_cfg, quick_gelu}
        checkpointing: bool = False,  # layers are computed again in the backward pass: less memory, the same result
    ) -> None:
        super().__init__()
        self.config, found = config_and_weights(model, weights, config)
        for unused in ("vision_cfg", "preprocess_cfg"):
            self.config.pop(unused, None)
        given = self.config["text_cfg"] = {**({"vocab_size": vocab_size} if vocab_size else {}), **self.config.get("text_cfg", {})}
        with refusals("the text tower", "give the config of a model of open_clip"):
            self.tower = (_Transformers if "hf_config" in given else _Clip)(self.config, checkpointing)
            self.report = take(self.tower.net, found, "text.", "the text tower")
        self.width, self.max_length = self.config["embed_dim"], self.tower.max_length
        if (vocab_size or 0) > self.tower.vocab_size:
            raise ConfigError(
                f"the tokenizer has {vocab_size} entries, the text tower only {self.tower.vocab_size}", "use the tokenizer of the model"
            )
        self.recipe: dict[str, Any] = {
            "name": "open_clip",
            "vocab_size": vocab_size or self.tower.vocab_size,
            "config": self.config,
            "checkpointing": checkpointing,
        }

    @property
    def blocks(self) -> nn.ModuleList:
        return self.tower.blocks

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids B L int64, mask B L bool (True = real, from the left) -> tokens B L D, zeros at padding; the first is the vector of the text."""
        check_length(ids, self.max_length)
        tokens, pooled = self.tower(ids, mask)  # B L D, B D
        return torch.cat([pooled.unsqueeze(1), tokens[:, 1:]], 1).masked_fill(~mask.unsqueeze(-1), 0.0)

    @staticmethod
    def load_tokenizer(model: str) -> tokenizers.Tokenizer:
        """The tokenizer of a model (as its option says it) as the `tokenizers` library holds it.

        Raises ConfigError for one that cannot be had, or cuts text in a way that this library does not know.
        """
        import open_clip

        with refusals(f"the tokenizer of '{model}'", FORMS):
            name = resolve(model)[0] if ":" in model else model
            text = parts(name)
            own = open_clip.get_tokenizer(name, **({"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}))
            if isinstance(own, open_clip.SimpleTokenizer) and own.clean_fn("A B.") == "a b.":
                return _as_backend(own)
            backend = getattr(getattr(own, "tokenizer", None), "backend_tokenizer", None)
            if backend is None or own.clean_fn("A B.") != "A B.":
                raise ConfigError(f"the tokenizer of '{model}' changes words in a way of its own", "use the model as open_clip:MODEL in grounding")
            return backend


class _Clip(nn.Module):
    """open_clip's TextTransformer, causal, without padding."""

    def __init__(self, config: Mapping[str, Any], checkpointing: bool) -> None:
        import open_clip

        super().__init__()
        made = open_clip.CustomTextCLIP(config["embed_dim"], SMALL_VISION, config["text_cfg"], quick_gelu=bool(config.get("quick_gelu")))
        self.net = made.text
        if self.net.attn_mask is None or self.net.pool_type not in ("argmax", "eos") or self.net.cls_emb is not None:
            raise ConfigError(
                "its text tower reads padding, or a token behind the text (SigLIP, CLIPA, CoCa)", "use the model as open_clip:MODEL in grounding"
            )
        self.net.transformer.grad_checkpointing = checkpointing
        self.max_length, self.vocab_size, self.blocks = self.net.context_length, self.net.vocab_size, self.net.transformer.resblocks

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        length, net = ids.shape[1], self.net
        x = net.token_embedding(ids.masked_fill(~mask, 0)) + net.positional_embedding[:length]  # B L C
        x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:length, :length]))
        if net.text_projection is not None:
            x = net.text_projection(x) if isinstance(net.text_projection, nn.Linear) else x @ net.text_projection
        last = (mask.sum(1, keepdim=True) - 1).clamp_min(0).unsqueeze(-1)  # B 1 1: where the end of the text stands
        pooled = x.gather(1, last.expand(-1, 1, x.shape[2]))
        return x.scatter(1, last.expand(-1, 1, x.shape[2]), x[:, :1]), pooled.squeeze(1)


POOLERS = ("cls_last_hidden_state_pooler", "mean_pooler")


class _Transformers(nn.Module):
    """open_clip's HFTextEncoder around our `hf`: the projection of every token, and of the first one, or of their mean, for the text."""

    def __init__(self, config: Mapping[str, Any], checkpointing: bool) -> None:
        from open_clip.hf_configs import arch_dict

        super().__init__()
        text, dim = config["text_cfg"], config["embed_dim"]
        kind = text["hf_config"].get("model_type", "")
        self.pooler = text.get("hf_pooler_type") or arch_dict.get(kind, {}).get("pooler", "")
        if self.pooler not in POOLERS:
            raise ConfigError(f"its text tower has the pooler '{self.pooler}'", f"known here: {', '.join(POOLERS)}")
        encoder = Hf(config=text["hf_config"], checkpointing=checkpointing)
        wide, form = encoder.width, text.get("hf_proj_type")
        middle = (wide + dim) // 2
        into: nn.Module = nn.Identity()
        if form == "linear":
            into = nn.Linear(wide, dim, bias=False)
        elif form == "mlp":
            into = nn.Sequential(nn.Linear(wide, middle, bias=False), nn.GELU(), nn.Linear(middle, dim, bias=False))
        elif wide != dim:
            raise ConfigError(f"its text tower is {wide} wide, the shared space {dim}", "give hf_proj_type: linear or mlp")
        self.hf = [encoder]  # not twice among the modules
        self.net = nn.ModuleDict({"transformer": encoder.encoder, "proj": into})  # the names of open_clip
        self.max_length, self.vocab_size, self.blocks = encoder.max_length, encoder.encoder.config.vocab_size, _layers(encoder.encoder)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hf[0](ids, mask)  # B L C, zeros at padding
        one = hidden[:, 0] if self.pooler == POOLERS[0] else hidden.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        return self.net["proj"](hidden), self.net["proj"](one)


def _layers(encoder: nn.Module) -> nn.ModuleList:
    return next(module for module in encoder.modules() if isinstance(module, nn.ModuleList))


def _as_backend(own: Any) -> tokenizers.Tokenizer:
    """CLIP's byte pairs (lower case, white space made one) in `tokenizers`, as transformers writes them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    first, last = (own.decoder[id] for id in own.all_special_ids[:2])
    backend = Tokenizer(
        models.BPE(
            vocab=own.encoder,
            merges=list(own.bpe_ranks),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=last,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([first, last])
    return backend
