"""A large language model that is told what the image shows: image tokens in front of a prompt, LoRA on its frozen weights.

    [prompt before] MLP(image tokens) [prompt after] [begin] s1 [begin] s2 ... [end]        L = CE(words)

The visual prefix of LLaVA and R2GenGPT (arXiv 2309.09812) with LoRA (Hu et al., arXiv 2106.09685) by `peft` (extra `llm`). The base weights
train nowhere and, of a checkpoint, are not saved: a run names the folder or hub id it began with and needs it to be loaded. With
`architecture` (random weights: tests, phantoms) they are saved too. Maps: the last layer's attention from the words to the image tokens.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from downstream.reportgen.decoders import DECODERS
from downstream.reportgen.decoders.base import MOST_CONTEXT, Look, Memory
from downstream.reportgen.decoders.hf import language_model, load_vocabulary, own_vocabulary
from downstream.reportgen.decoders.transformer import Sequential
from downstream.reportgen.language import Prompt, outputs
from downstream.reportgen.vocabulary import UNKNOWN, Vocabulary, Words
from elvis.errors import ConfigError

PROMPT = "A chest radiograph: <image> Its report:"


@DECODERS.register("llm_lora")
class LlmLora(Sequential):
    """Part: report."""

    own_vocabulary = staticmethod(own_vocabulary)
    load_vocabulary = staticmethod(load_vocabulary)

    def __init__(
        self,
        *,
        tokens_width: int,
        tokens: int,
        vocab: int,
        max_report: int,
        special: Sequence[int],  # pad, begin, end, and what is never said
        checkpoint: str = "",
        architecture: Mapping[str, Any] | None = None,  # keywords of the model's config, and model_type
        prompt: str = PROMPT,  # <image> is where the image tokens go
        rank: int = 16,
        alpha: int = 32,
        lora_dropout: float = 0.05,
        targets: Any = "all-linear",  # or a list of module names, such as [q_proj, v_proj]
        look_layers: int = 0,
        heads: int = 8,  # of those layers
        dropout: float = 0.1,
        context: int = 0,
    ) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ConfigError("decoder llm_lora needs peft", "pip install 'elvis-vlp[llm]'") from None
        if prompt.count("<image>") != 1:
            raise ConfigError(f"decoder.prompt must hold <image> once, not {prompt.count('<image>')} times", f"for example '{PROMPT}'")
        self.pad, self.between, self.end, *barred = special
        self.max_report, self.text, self.from_checkpoint = max_report, prompt, bool(checkpoint)
        base = language_model(checkpoint, architecture, vocab, special, "llm_lora").requires_grad_(False)
        base.config.pad_token_id = None  # it would warn of the padding behind an end
        wanted = targets if isinstance(targets, str) else list(targets)
        try:
            lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=lora_dropout, target_modules=wanted, task_type="CAUSAL_LM")
            with warnings.catch_warnings():  # peft asks transformers by an attribute's old name
                warnings.simplefilter("ignore", FutureWarning)
                self.lm = get_peft_model(base, lora)
        except ValueError as error:
            raise ConfigError(
                f"decoder.targets: {' '.join(str(error).split())[:200]}", "write all-linear, or names of the model's modules"
            ) from error
        self.never = (*barred, *range(vocab, base.config.vocab_size))
        width = base.config.hidden_size
        self.look = Look(tokens_width, width, look_layers, heads, tokens, dropout, context)
        self.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.learned = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        self.around: tuple[list[int], list[int]] = ([], [])
        self.most_seen = tokens + bool(context) * MOST_CONTEXT

    def tell(self, vocabulary: Words) -> None:
        """The prompt in the decoder's words; of a vocabulary of ours those it knows."""
        parts = [vocabulary.encode(part.strip()) for part in self.text.split("<image>")]
        if isinstance(vocabulary, Vocabulary):
            parts = [[i for i in part if i != UNKNOWN] for part in parts]
        self.around = parts[0], parts[1]
        need = sum(map(len, parts)) + self.most_seen + 1 + self.max_report
        room = getattr(self.lm.config, "max_position_embeddings", None) or need
        if need > room:
            raise ConfigError(
                f"prompt, image and a report of decode.max_report={self.max_report} are {need} tokens, the model has room for {room}",
                f"set decode.max_report={self.max_report - need + room}" if self.max_report - need + room > 0 else "use a model with more positions",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> LlmLora:
        """A copy that shares the base model's fixed weights: what tuning compares with would double a large model."""
        memo |= {id(p): p for name, p in self.named_parameters() if name not in self.learned}
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def kept(self, name: str) -> bool:
        """Whether a weight is saved: all but the base model's where that came from a checkpoint."""
        return not self.from_checkpoint or name in self.learned or not name.startswith("lm.")

    def trained_by(self, part: str) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name in self.learned]

    def prompt(self, memory: Memory) -> Prompt:
        seen, mask = self.look(memory)
        image = self.project(seen)  # B N W
        words = self.lm.get_input_embeddings()
        before, after = (
            words(torch.tensor(ids, dtype=torch.int64, device=image.device)).expand(len(image), -1, -1)
            for ids in (self.around[0], [*self.around[1], self.between])
        )
        start = torch.cat([before, image.to(before.dtype), after], 1)
        real = torch.cat([mask.new_ones(before.shape[:2]), mask, mask.new_ones(after.shape[:2])], 1)
        return Prompt(start, real)

    @torch.no_grad()
    def looked(self, memory: Memory, prompt: Prompt, ids: Tensor) -> Tensor | None:
        seen = outputs(self.lm, prompt, ids, output_attentions=True).attentions
        if not seen or seen[-1] is None:
            return None
        begin = len(self.around[0])
        rows = seen[-1].float().mean(1)[:, prompt.start.shape[1] - 1 : -1, begin : begin + memory.tokens.shape[1]]
        return rows / rows.sum(-1, keepdim=True).clamp_min(1e-12)
