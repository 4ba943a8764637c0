"""Any transformers text encoder by local folder or hub id (BERT, RoBERTa, MPNet, ModernBERT, ...), and its tokenizer.

    ids, mask B L -> encoder -> tokens B L D: its last hidden states, or the mean of the last `layers_mean`

No code from a checkpoint is ever run (trust_remote_code is off), a pooling layer is not built, and every weight must be in the checkpoint.
GLoRIA sums the last 4 layers; their mean is the same up to a factor, which projections and cosines do not see.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from elvis.errors import ConfigError, nearest
from elvis.hub import check_hub
from elvis.registry import TEXT_ENCODERS
from elvis.text import check_length
from elvis.weights import Found, Report, load, read

if TYPE_CHECKING:
    import tokenizers


PLAIN = ("bert", "roberta", "xlm-roberta", "camembert", "electra")  # every token attends every other one: nothing to add to a mask of padding


@TEXT_ENCODERS.register("hf")
class Hf(nn.Module):
    def __init__(
        self,
        *,
        vocab_size: int | None = None,  # of the tokenizer; None = the encoder's own
        checkpoint: str = "",  # folder or hub id with weights, e.g. emilyalsentzer/Bio_ClinicalBERT (LoVT, GLoRIA, MGCA)
        config: Mapping[str, Any] | None = None,  # or the encoder's config alone: random weights, no network
        weights: str = "",  # a file of weights for the encoder of either, in place of the folder's (docs/starting_points.md)
        unmatched: Sequence[str] = (),  # regexes of names that may be missing from that file, or left over in it
        layers_mean: int = 1,  # LoVT: the last hidden states; GLoRIA: 4
        checkpointing: bool = False,  # layers are computed again in the backward pass: less memory, the same result
    ) -> None:
        super().__init__()
        if bool(checkpoint) == bool(config):
            raise ConfigError(
                "text encoder 'hf' needs either 'checkpoint' or 'config'", "checkpoint: a folder or hub id;  config: {model_type: bert, ...}"
            )
        self.report: Report | None = None
        if checkpoint:
            with _refusals(checkpoint):
                self.encoder, self.report = _from_checkpoint(checkpoint, wanted=not weights)
        else:
            with _refusals("text.config"):
                self.encoder = _from_config({**({"vocab_size": vocab_size} if vocab_size else {}), **config})
        if weights and torch.get_default_device().type != "meta":
            self.report = load(self.encoder, _named_as_now(read(weights)), into=f"a {self.encoder.config.model_type}", unmatched=unmatched)
        own = self.encoder.config
        if (vocab_size or 0) > own.vocab_size:
            raise ConfigError(
                f"the tokenizer has {vocab_size} entries, the text encoder only {own.vocab_size}", "use the tokenizer of the checkpoint"
            )
        if not 1 <= layers_mean <= own.num_hidden_layers:
            raise ConfigError(
                f"layers_mean={layers_mean}, but the text encoder has {own.num_hidden_layers} layers", f"choose 1 to {own.num_hidden_layers}"
            )
        self.width, self.max_length, self.layers_mean = own.hidden_size, _longest(self.encoder), layers_mean
        full = json.loads(own.to_json_string(use_diff=False))  # the whole config: the checkpoint opens where this one is not
        full.pop("_name_or_path", None)
        self.recipe: dict[str, Any] = {
            "name": "hf",
            "vocab_size": vocab_size or own.vocab_size,
            "config": full,
            "layers_mean": layers_mean,
            "checkpointing": checkpointing,
        }
        if checkpointing:
            _recompute_layers(self.encoder)

    @property
    def nets(self) -> list[nn.Module]:
        return [self.encoder]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids B L int64, mask B L bool (True = real, from the left) -> tokens B L D, zeros at padding."""
        check_length(ids, self.max_length)
        ids = ids.masked_fill(~mask, self.encoder.config.pad_token_id or 0)  # RoBERTa counts its positions from the ids
        out = self.encoder(input_ids=ids, attention_mask=self._seen(mask), output_hidden_states=self.layers_mean > 1)
        if self.layers_mean == 1:
            tokens = out.last_hidden_state  # B L D
        else:
            tokens = torch.stack(out.hidden_states[-self.layers_mean :]).mean(0)
        return tokens.masked_fill(~mask.unsqueeze(-1), 0.0)

    def _seen(self, mask: Tensor) -> Tensor:
        """mask B L as the encoder takes it: whole, B 1 L L, where transformers would ask the device whether anything is padded, and wait."""
        own = self.encoder.config
        if own.model_type not in PLAIN or own._attn_implementation != "sdpa":
            return mask.long()
        keys = mask | ~mask.any(1, keepdim=True)  # a text without a token attends its padding, or softmax would divide 0 by 0
        return keys[:, None, None].expand(-1, 1, mask.shape[1], -1)

    @staticmethod
    def load_tokenizer(checkpoint: str) -> tokenizers.Tokenizer:
        """The tokenizer of a checkpoint (folder or hub id) as the `tokenizers` library holds it.

        Raises ConfigError for a checkpoint that cannot be had, or one whose tokenizer is written in Python (not in `tokenizers`).
        """
        from transformers import AutoTokenizer

        _check_there(checkpoint)
        with _refusals(checkpoint), _quiet():
            kin = _kin(checkpoint)
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint, trust_remote_code=False, **({"config": kin, "tokenizer_type": kin.model_type} if kin else {})
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None and set(backend.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers 5 makes one up where there is none
            raise ConfigError(f"'{checkpoint}' holds no tokenizer", "put its tokenizer.json, or vocab.txt, beside the weights")
        if backend is None:
            raise ConfigError(f"the tokenizer of '{checkpoint}' ({type(tokenizer).__name__}) is a slow one", "save a tokenizer.json beside it")
        return backend


def _from_checkpoint(checkpoint: str, wanted: bool) -> tuple[nn.Module, Report | None]:
    """The encoder of a checkpoint and what was loaded; at random, of its config alone, where its weights are not wanted."""
    from transformers import AutoConfig, AutoModel

    _check_there(checkpoint)
    with _quiet():
        config = _kin(checkpoint) or AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        if not wanted or torch.get_default_device().type == "meta":  # shapes are asked for, not weights
            return _from_config(config.to_dict()), None
        encoder, loaded = AutoModel.from_pretrained(
            checkpoint, config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, **_no_pooler(config)
        )
    if missing := sorted(loaded["missing_keys"]):
        raise ConfigError(
            f"'{checkpoint}' lacks {len(missing)} weights of its encoder, such as {missing[0]}", "use a checkpoint of the encoder itself"
        )
    names = tuple(encoder.state_dict())
    found = Found({}, os.path.basename(checkpoint.rstrip("/")) if os.path.isdir(checkpoint) else checkpoint)
    return encoder.train(), Report(f"a {config.model_type}", found, "", len(names), names, (), (), tuple(sorted(loaded["unexpected_keys"])))


KIN = {"cxr-bert": "bert"}  # what a folder calls its model -> whose encoder that is; its own code, of a head that is not used, is not run


def _kin(checkpoint: str) -> Any:
    """The config of a folder whose model is one of KIN, as its kin's; None for any other."""
    from transformers import CONFIG_MAPPING

    try:
        said = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
        kind = KIN[said["model_type"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return CONFIG_MAPPING[kind].from_dict({key: value for key, value in said.items() if key not in ("auto_map", "architectures", "model_type")})


def _named_as_now(found: Found) -> Found:
    """Old files of BERT call the weight and bias of a norm gamma and beta."""
    norm = re.compile(r"(LayerNorm\.)(gamma|beta)$")
    now = {norm.sub(lambda m: m[1] + {"gamma": "weight", "beta": "bias"}[m[2]], name): value for name, value in found.tensors.items()}
    return replace(found, tensors=now)


def _from_config(config: dict[str, Any]) -> nn.Module:
    from transformers import CONFIG_MAPPING, AutoModel

    kinds = list(CONFIG_MAPPING.keys())
    if (kind := config.get("model_type", "")) not in kinds:
        raise ConfigError(f"transformers has no model_type '{kind}'{nearest(kind, kinds)}", "config: {model_type: bert, hidden_size: 768, ...}")
    with _quiet():
        config = CONFIG_MAPPING[kind].from_dict(config)
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, **_no_pooler(config))


def _no_pooler(config: Any) -> dict[str, bool]:
    """`add_pooling_layer=False` for classes that know it; what is no text encoder is refused."""
    from transformers import MODEL_MAPPING

    if "/" in str(config._attn_implementation):  # transformers would fetch code of that name from the hub and run it
        raise ConfigError(f"the config asks for the attention '{str(config._attn_implementation)[:60]}'", "choose sdpa or eager")
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING or not hasattr(config, "vocab_size") or not hasattr(config, "hidden_size"):
        raise ConfigError(f"a {config.model_type} is no text encoder", "use an encoder such as BERT, RoBERTa or ModernBERT")
    known = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _recompute_layers(encoder: nn.Module) -> None:
    """transformers' checkpointing, which acts in training mode; frozen layers below the others are passed by no gradient."""
    if not encoder.supports_gradient_checkpointing:
        raise ConfigError(f"transformers cannot compute the layers of a {encoder.config.model_type} again", "set text.checkpointing=false")
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable  # its name in older versions
    enable({"use_reentrant": False})
    encoder.disable_input_require_grads()  # which the line above turned on, and gradients would pass frozen layers
    encoder.config.use_cache = False  # a decoder's; it would be warned of


def _longest(encoder: nn.Module) -> int:
    """How many tokens the positions allow; RoBERTa and its kin start to count behind the padding index."""
    limit = getattr(encoder.config, "max_position_embeddings", None) or -1
    tables = (m for n, m in encoder.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding))
    start = next((m.padding_idx + 1 for m in tables if m.padding_idx is not None), 0)
    return limit - start if limit > 0 else sys.maxsize  # relative positions: no limit


def _check_there(checkpoint: str) -> None:
    """ConfigError at once for a folder that does not exist, or a hub id while the hub does not answer."""
    if os.path.isdir(checkpoint):
        return
    if checkpoint.count("/") > 1 or checkpoint.startswith((".", "/", "~")):
        raise ConfigError(f"no folder '{checkpoint}' for the text encoder", "give a folder with config.json and weights, or a hub id (owner/name)")
    check_hub(f"the text encoder '{checkpoint}' (no such folder here)", "give a local folder")


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What transformers refuses, as one short ConfigError."""
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, KeyError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:180]
        raise ConfigError(
            f"transformers cannot use {what}: {reason}", "give an encoder that needs no code of its own, with config.json, weights and tokenizer.json"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its reports and progress bars, and as it was afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
