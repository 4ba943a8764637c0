"""Neural metrics of others, on weights that a user has already: local paths only, nothing is ever fetched, no code of a checkpoint is run.

    CheXbert("models/chexbert.pth", "models/bert-base-uncased")    labels of CheXpert's 14 observations; semb_score
    RadGraph("models/radgraph-xl")                                 radgraph_simple / _partial / _complete (needs the package `radgraph`)
    BertScore("models/distilroberta-base", layer=5, baseline=...)  bertscore_precision / _recall / _f1
    CxrBert("models/BiomedVLP-CXR-BERT-specialized")               cxr_bert_cosine
    CtClassifier("models/radbert-ct")                              labels of CT-RATE's 18 abnormalities

Each but the two labelers is called as every metric: metric(hypotheses, references) -> {name: Sums}. A path that is absent or holds
something else is a ConfigError that names what is needed and where its owner gives it.

NOT verified here, as the owners' weights were not at hand: that the real files load, and that the numbers are the owners'. What the code
rests on is told at each class; it is tested with tiny random checkpoints of the same layout, against transformers and `bert-score`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.reportgen.metrics import meteor
from downstream.reportgen.metrics.clinical import CHEXPERT14, CTRATE18, Labeler, clinical
from downstream.reportgen.metrics.sums import Sums, mean
from elvis.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

RADGRAPHS = ("radgraph", "radgraph-xl", "modern-radgraph-xl", "echograph")
OBSERVATIONS = (  # in the order of CheXbert's heads
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
STATES = {1: 1, 2: 0, 3: -1}  # class of a head -> positive, negative, uncertain; class 0 = blank
OWNERS = {
    "chexbert": "chexbert.pth: see the README of github.com/stanfordmlgroup/CheXbert, or huggingface.co/StanfordAIMI/RRG_scorers",
    "vocabulary": "a folder with vocab.txt or tokenizer.json of bert-base-uncased: huggingface.co/google-bert/bert-base-uncased",
    "radgraph": "unpack radgraph-xl.tar.gz of huggingface.co/StanfordAIMI/RRG_scorers into a folder radgraph-xl",
    "bertscore": "download a folder such as huggingface.co/distilbert/distilroberta-base (the encoder ReXrank uses, layer 5)",
    "baseline": "a table such as rescale_baseline/en/distilroberta-base.tsv of github.com/Tiiiger/bert_score",
    "ct_classifier": "save a transformers sequence classifier of CT-RATE's 18 labels there (of CT-CLIP's RadBERT: docstring of CtClassifier)",
    "cxrbert": "download the folder huggingface.co/microsoft/BiomedVLP-CXR-BERT-specialized",
}
BATCH = 32
HEAD = 64  # width of an attention head in every BERT of the usual sizes; a state dict does not tell it


class CheXbert:
    """CheXpert's 14 observations by BERT: labeler.label(text) -> {observation: 1 | 0 | -1}, absent = blank, as the rule labeler gives them.

        h = BERT(text) at CLS;  class = argmax(W_o h + b_o);  0 blank, 1 positive, 2 negative, 3 uncertain ("No Finding": 0 blank, 1 positive)

    `path`: chexbert.pth, or the folder it is in; `vocabulary`: a folder with BERT's vocab.txt or tokenizer.json (default: that folder).
    Line breaks and runs of blanks become one blank, texts are cut at 512 tokens, as its owners do. Sizes are read off the weights, an
    attention head is 64 wide.

    Source: Smit et al., EMNLP 2020 (arXiv 2004.09167); github.com/stanfordmlgroup/CheXbert, src/constants.py, src/bert_tokenizer.py and
    src/label.py: {"model_state_dict": {"module.bert...", "module.linear_heads.0 ... 13.{weight,bias}"}}. The real file was not at hand;
    others report that it loads with weights_only and has these 227 tensors.
    """

    def __init__(self, path: Path | str, vocabulary: Path | str = "", device: str = "cpu") -> None:
        file = Path(path) / "chexbert.pth" if Path(path).is_dir() else Path(path)
        state = _loaded(_there(file, "CheXbert's weights", "chexbert"), "chexbert")
        state = {name.removeprefix("module."): tensor for name, tensor in state.get("model_state_dict", state).items()}
        heads = [state.get(f"linear_heads.{i}.weight") for i in range(len(OBSERVATIONS))]
        if [None if head is None else len(head) for head in heads] != [4] * 13 + [2]:
            raise ConfigError(f"{file} has not the 14 heads of CheXbert", OWNERS["chexbert"])
        self.bert = _bert({k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.")}, file, "chexbert").to(device)
        self.heads = [(state[f"linear_heads.{i}.weight"].to(device), state[f"linear_heads.{i}.bias"].to(device)) for i in range(len(heads))]
        self.tokenizer = _word_pieces(Path(vocabulary) if vocabulary else file.parent, self.bert, "vocabulary")

    def __call__(self, texts: Sequence[str]) -> list[dict[str, int]]:
        """The labels of each text."""
        states = self.embed(texts)
        classes = torch.stack([F.linear(states, weight, bias).argmax(1) for weight, bias in self.heads], 1).tolist()  # N 14
        return [{name: STATES[c] for name, c in zip(OBSERVATIONS, row, strict=True) if c} for row in classes]

    def label(self, text: str) -> dict[str, int]:
        """The labels of one text (many at once are faster: call the object)."""
        return self([text])[0]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """N D: the last hidden state at CLS."""
        return _first_states(self.bert, self.tokenizer, [" ".join(text.split()) for text in texts])

    def similarity(self, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Sums]:
        """{"semb_score": mean cosine of the CLS states}: the CheXbert similarity of CXR-Report-Metric (Yu et al. 2023, Patterns)."""
        return {"semb_score": mean(_cosines(self.embed(hypotheses), self.embed(references)))}


class CxrBert:
    """Mean cosine of two reports' embeddings: {"cxr_bert_cosine": ...}.

    A folder of CXR-BERT: its CLS state through its projection  W2 LN(gelu(W1 h + b1)) + b2.  Any other folder of a transformers text
    encoder: its first state (CLS) as it is; it should be one that was trained for that.

    Source: Boecking et al., ECCV 2022 (arXiv 2204.09817), layout of its checkpoint: bert.*, cls_projection_head.{dense_to_hidden, LayerNorm,
    dense_to_output}. CXRMate rewards with this cosine. The real folder was not at hand.
    """

    def __init__(self, path: Path | str, device: str = "cpu") -> None:
        folder = _folder(path, "CXR-BERT", "cxrbert")
        state = _folder_state(folder)
        self.projection = None
        if "cls_projection_head.dense_to_hidden.weight" in state:
            bert = {k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.")}
            self.encoder = _bert(bert, folder, "cxrbert", _json(folder / "config.json")).to(device)
            self.projection = _projection(state).to(device)
            self.tokenizer = _word_pieces(folder, self.encoder, "cxrbert")
        else:
            self.encoder, self.tokenizer = _any_encoder(folder, device)
            if not self.tokenizer.encode("").ids:
                raise ConfigError(f"the tokenizer in {folder} puts no CLS before a text", "use an encoder whose first state stands for the text")

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Sums]:
        return {"cxr_bert_cosine": mean(_cosines(self.embed(hypotheses), self.embed(references)))}

    def embed(self, texts: Sequence[str]) -> Tensor:
        """N D, not normalised."""
        states = _first_states(self.encoder, self.tokenizer, texts)
        with torch.no_grad():
            return states if self.projection is None else self.projection(states)


class CtClassifier:
    """CT-RATE's 18 abnormalities by a text classifier of yours: labeler.label(text) -> {abnormality: 1}, absent = no.

        yes = sigmoid(logit) >= threshold

    `path`: a folder as transformers saves an AutoModelForSequenceClassification with 18 outputs and its tokenizer. Names are those of its
    id2label where they are CT-RATE's (case, blanks and "_" do not matter), else its outputs are taken in the order of ctrate18.CLASSES. Texts
    are cut at 512 tokens, or where its positions end.

    CT-RATE's own labels are by RadBERT of github.com/ibrahimethemhamamci/CT-CLIP, text_classifier: a RoBERTa with a linear layer on its
    pooler. This is what RobertaForSequenceClassification computes: rename model.* roberta.*, model.pooler.dense.* classifier.dense.* and
    classifier.* classifier.out_proj.*, and save it with the tokenizer of zzxslp/RadBERT-RoBERTa-4m. Neither was at hand; that the two heads
    are the same is tested on a tiny random RoBERTa. Take the file of 18 labels; newer code of its owners has 20.
    """

    def __init__(self, path: Path | str, threshold: float = 0.5, device: str = "cpu") -> None:
        folder = _folder(path, "the CT classifier", "ct_classifier")
        if not 0 < threshold < 1:
            raise ConfigError(f"ct_classifier: a threshold of {threshold:g} is no probability", "choose one between 0 and 1")
        self.model, self.tokenizer = _classifier(folder, len(CTRATE18.classes))
        self.model.to(device)
        self.names = _names(self.model.config.id2label, CTRATE18.classes)
        self.bound = math.log(threshold / (1 - threshold))

    def __call__(self, texts: Sequence[str]) -> list[dict[str, int]]:
        """The labels of each text."""
        device, found = _device(self.model), []
        with torch.no_grad():
            for ids, mask, _ in _encoded(self.tokenizer, texts):
                yes = (self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits >= self.bound).tolist()
                found += [{name: 1 for name, there in zip(self.names, row, strict=True) if there} for row in yes]
        return found

    def label(self, text: str) -> dict[str, int]:
        """The labels of one text (many at once are faster: call the object)."""
        return self([text])[0]


class BertScore:
    """Greedy matching of contextual embeddings (Zhang et al., ICLR 2020): {"bertscore_precision", "bertscore_recall", "bertscore_f1"}, means.

        P = mean over words h of the hypothesis of max_r cos(h, r);  R the other way round;  F = 2 P R / (P + R);  0 without a word

    CLS and SEP may be matched but are not averaged over. `layer`: which hidden states (0 = embeddings; default the last): bert-score takes 5
    of distilroberta-base, 9 of bert-base-uncased, 17 of roberta-large. `baseline`: a table LAYER,P,R,F whose row b rescales x to
    (x - b) / (1 - b). No idf weights. One difference from `bert-score`: padding is never matched, so no number depends on its batch.
    The layer is taken before a norm that some encoders (ModernBERT) put behind the last one.

    Tested against `bert-score` 0.3.13 on a tiny random BERT; the owners' weights were not at hand.
    """

    def __init__(self, path: Path | str, layer: int | None = None, baseline: Path | str = "", device: str = "cpu") -> None:
        self.encoder, self.tokenizer = _any_encoder(_folder(path, "BERTScore", "bertscore"), device)
        depth = self.encoder.config.num_hidden_layers
        self.layer = depth if layer is None else layer
        if not 0 <= self.layer <= depth:
            raise ConfigError(f"layer {layer} of an encoder of {depth} layers", f"choose 0 to {depth}")
        self.baseline = _baseline(Path(baseline), self.layer) if baseline else np.zeros(3)

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Sums]:
        pairs = zip(self._words(hypotheses), self._words(references), strict=True)
        found = np.array([_matched(*pair) for pair in pairs]).reshape(-1, 3)
        scores = (found - self.baseline) / (1 - self.baseline)
        return {f"bertscore_{name}": mean(scores[:, i]) for i, name in enumerate(("precision", "recall", "f1"))}

    def _words(self, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each text: its normalised states L D, and which of them are words (not CLS or SEP)."""
        # a byte-level tokenizer has another token for a word at the very beginning; bert-score avoids it
        blank = " " if type(self.tokenizer.model).__name__ == "BPE" else ""
        for codes, mask, words in _encoded(self.tokenizer, [blank + text.strip() if text.strip() else "" for text in texts]):
            if not codes.shape[1]:  # texts without a word, of a tokenizer without CLS
                yield from [(torch.zeros(0, 1), torch.zeros(0, dtype=torch.bool))] * len(codes)
                continue
            with torch.no_grad():
                out = self.encoder(
                    input_ids=codes.to(_device(self.encoder)), attention_mask=mask.to(_device(self.encoder)), output_hidden_states=True
                )
            for states, real, word in zip(F.normalize(out.hidden_states[self.layer], dim=-1), mask.bool(), words, strict=True):
                yield states[real], word[real]


class RadGraph:
    """F1 of the graphs of entities and relations: {"radgraph_simple", "radgraph_partial", "radgraph_complete"}, means over reports.

    simple: entities with their label; partial: and whether they have a relation; complete: and each relation. 0 where a text is empty.
    `path`: the unpacked model, a folder named like its model (radgraph, radgraph-xl, ...); `tokenizer`: a Hugging Face cache that holds the
    tokenizer its config names (default: the user's own cache).

    Source: Jain et al. 2021 (arXiv 2106.14463), Delbrouck et al. 2022 and 2024; package `radgraph` 0.1.18, F1RadGraph(reward_level="all").
    Neither its weights nor its work with transformers 5 could be tried here: the call is tested against a stand-in of the package.
    """

    def __init__(self, path: Path | str, tokenizer: Path | str = "", device: str = "cpu") -> None:
        folder = _folder(path, "RadGraph", "radgraph")
        if folder.name not in RADGRAPHS:
            raise ConfigError(f"a folder of RadGraph is named like its model, not '{folder.name}'", f"rename it to one of {', '.join(RADGRAPHS)}")
        try:
            with _silent():
                import radgraph
        except ImportError as error:
            raise ConfigError(f"RadGraph needs the package radgraph ({error})", "pip install radgraph") from None
        cuda = -1 if device == "cpu" else torch.device(device).index or 0
        options: dict[str, Any] = {"tokenizer_cache_dir": str(tokenizer)} if tokenizer else {}
        try:
            with _silent(), _offline():
                cache = str(folder.resolve().parent)
                self.f1 = radgraph.F1RadGraph(reward_level="all", model_type=folder.name, model_cache_dir=cache, cuda=cuda, **options)
        except Exception as error:  # whatever a package of others may raise on its own files
            raise ConfigError(f"radgraph cannot use {folder}: {' '.join(str(error).split())[:120]}", OWNERS["radgraph"]) from error

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Sums]:
        told = [i for i, pair in enumerate(zip(hypotheses, references, strict=True)) if all(text.strip() for text in pair)]
        scores = np.zeros((len(hypotheses), 3))
        if told:
            with _silent():
                found = self.f1(refs=[references[i] for i in told], hyps=[hypotheses[i] for i in told])[1]
            scores[told] = np.array(found, np.float64).T
        return {f"radgraph_{level}": mean(scores[:, i]) for i, level in enumerate(("simple", "partial", "complete"))}


# ------------------------------------------------------------------------------------------------------------ paths


def _there(path: Path, what: str, key: str) -> Path:
    if not path.is_file():
        raise ConfigError(f"no file {path} for {what}", OWNERS[key])
    return path


def _folder(path: Path | str, what: str, key: str) -> Path:
    folder = Path(path)
    if not folder.is_dir() or not (folder / "config.json").is_file():
        lacks = "has no config.json" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{folder} {lacks}: {what} needs the local folder of its model", OWNERS[key])
    return folder


def _loaded(file: Path, key: str) -> dict[str, Any]:
    """A file of tensors; no pickle that could run code."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(f"{file} is no file of weights: {' '.join(str(error).split())[:80]}", OWNERS[key]) from None
    if not isinstance(state, dict):
        raise ConfigError(f"{file} holds no weights", OWNERS[key])
    return state


def _folder_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder of transformers, as far as they lie in one file; {} for other folders, which transformers itself may open."""
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(folder / "model.safetensors")
    file = folder / "pytorch_model.bin"
    return _loaded(file, "cxrbert") if file.is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {str(error)[:80]}", "give the folder as its owner made it") from None
    return value if isinstance(value, dict) else {}


def _baseline(file: Path, layer: int) -> np.ndarray:
    """P, R, F of a layer in a table LAYER,P,R,F."""
    with _there(file, "the baseline of BERTScore", "baseline").open(newline="", encoding="utf-8") as lines:
        rows = {row.get("LAYER"): row for row in csv.DictReader(lines)}
    try:
        return np.array([float(rows[str(layer)][name]) for name in "PRF"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{file} has no baseline P, R, F of layer {layer}", OWNERS["baseline"]) from None


# ---------------------------------------------------------------------------------------------------------- encoders


def _bert(state: dict[str, Tensor], where: Path, key: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """BERT without a pooler. Its sizes are those of `config`, or are read off the weights."""
    from transformers import BertConfig, BertModel

    kept = {k: v for k, v in state.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}
    try:
        bert = BertModel(BertConfig(**_sizes(kept, config)), add_pooling_layer=False)
        bert.load_state_dict(kept)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{where} has not the weights of a BERT: {' '.join(str(error).split())[:120]}", OWNERS[key]) from None
    return bert.eval()


def _sizes(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
    words, width = state["embeddings.word_embeddings.weight"].shape
    heads, act, eps = max(1, width // HEAD), "gelu", 1e-12
    if config is not None:
        heads, act, eps = config.get("num_attention_heads", heads), config.get("hidden_act", act), config.get("layer_norm_eps", eps)
    return {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")}),
        "num_attention_heads": heads,
        "intermediate_size": len(state["encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(state["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(state["embeddings.token_type_embeddings.weight"]),
        "hidden_act": act,
        "layer_norm_eps": eps,
    }


def _projection(state: Mapping[str, Tensor]) -> nn.Module:
    """The head of CXR-BERT at CLS."""
    name = "cls_projection_head."
    width, hidden = state[f"{name}dense_to_hidden.weight"].shape
    parts = {"dense_to_hidden": nn.Linear(hidden, width), "gelu": nn.GELU(), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
    head = nn.Sequential()
    for part, module in {**parts, "dense_to_output": nn.Linear(width, width)}.items():
        head.add_module(part, module)
    head.load_state_dict({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})
    return head.eval()


def _any_encoder(folder: Path, device: str) -> tuple[nn.Module, tokenizers.Tokenizer]:
    """A text encoder of transformers and its tokenizer, from a local folder."""
    from elvis.text.hf import Hf

    with _offline():
        encoder, tokenizer = Hf(checkpoint=str(folder)).eval(), Hf.load_tokenizer(str(folder))
    _prepared(tokenizer, min(encoder.max_length, 512), encoder.encoder.config.pad_token_id or 0)
    return encoder.encoder.to(device), tokenizer


def _classifier(folder: Path, outputs: int) -> tuple[nn.Module, tokenizers.Tokenizer]:
    """A sequence classifier of transformers and its tokenizer, from a local folder; no code of it is run."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from elvis.text.hf import Hf

    try:
        with _offline(), _silent():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            if config.num_labels != outputs:
                raise ConfigError(f"the classifier in {folder} has {config.num_labels} outputs, not {outputs}", OWNERS["ct_classifier"])
            model, told = AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, trust_remote_code=False, local_files_only=True, output_loading_info=True
            )
    except ConfigError:
        raise
    except Exception as error:  # whatever transformers and safetensors may raise on a broken file
        raise ConfigError(f"{folder} holds no classifier: {' '.join(str(error).split())[:120]}", OWNERS["ct_classifier"]) from None
    if missing := sorted(told["missing_keys"]):  # transformers would draw them at random
        raise ConfigError(f"the classifier in {folder} has no weights {', '.join(missing)[:120]}", OWNERS["ct_classifier"])
    with _offline():
        tokenizer = Hf.load_tokenizer(str(folder))
    tables = [m for n, m in model.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    longest = [m.num_embeddings - (0 if m.padding_idx is None else m.padding_idx + 1) for m in tables]  # RoBERTa begins behind its padding
    _prepared(tokenizer, min([512, *longest]), config.pad_token_id or 0)
    return model.eval(), tokenizer


def _names(given: Mapping[int, str], known: Sequence[str]) -> tuple[str, ...]:
    """The names of a classifier's outputs where they are all of the known ones, else the known ones in their order."""
    plain = {name.lower(): name for name in known}
    found = [plain.get(" ".join(given[place].replace("_", " ").lower().split())) for place in range(len(known))]
    return tuple(name for name in found if name) if len(set(found) - {None}) == len(known) else tuple(known)


def _word_pieces(folder: Path, bert: nn.Module, key: str) -> tokenizers.Tokenizer:
    """tokenizer.json, or vocab.txt as BERT reads it (small letters unless tokenizer_config.json says otherwise); no code of a folder is run."""
    import tokenizers

    if (folder / "tokenizer.json").is_file():
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
        told = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        tokenizer = _from_vocabulary(folder / "vocab.txt", bool(told.get("do_lower_case", True)))
    else:
        raise ConfigError(f"{folder} has no vocab.txt or tokenizer.json", OWNERS[key])
    if (size := tokenizer.get_vocab_size()) > bert.config.vocab_size:
        raise ConfigError(
            f"the vocabulary in {folder} has {size} entries, the weights {bert.config.vocab_size}", "use the vocabulary of these weights"
        )
    _prepared(tokenizer, min(512, bert.config.max_position_embeddings), 0)
    return tokenizer


def _from_vocabulary(file: Path, lower: bool) -> tokenizers.Tokenizer:
    """BERT's word pieces of a vocab.txt, a piece a line."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = {piece: i for i, piece in enumerate(file.read_text(encoding="utf-8").splitlines())}
    if lacks := [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in pieces]:
        raise ConfigError(f"{file} has no {lacks[0]}", OWNERS["vocabulary"])
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", pieces["[SEP]"]), ("[CLS]", pieces["[CLS]"]))
    return tokenizer


def _prepared(tokenizer: tokenizers.Tokenizer, longest: int, pad: int) -> None:
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=pad)


_ROWS = ("ids", "attention_mask", "special_tokens_mask")


def _encoded(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """In batches: ids B L, mask B L int64, and which are words, bool B L."""
    for start in range(0, len(texts), BATCH):
        found = tokenizer.encode_batch(list(texts[start : start + BATCH]))
        ids, mask, special = (torch.tensor([getattr(code, name) for code in found], dtype=torch.long) for name in _ROWS)
        yield ids, mask, special == 0


def _first_states(encoder: nn.Module, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> Tensor:
    """N D: the last hidden state at the first token."""
    device, out = _device(encoder), []
    with torch.no_grad():
        for ids, mask, _ in _encoded(tokenizer, texts):
            out.append(encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state[:, 0])
    return torch.cat(out) if out else torch.zeros(0, encoder.config.hidden_size, device=device)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


# ------------------------------------------------------------------------------------------------------------ scores


def _cosines(ours: Tensor, theirs: Tensor) -> np.ndarray:
    if len(ours) != len(theirs):
        raise ConfigError(f"{len(ours)} generated reports, {len(theirs)} references", "give one reference a report")
    return F.cosine_similarity(ours, theirs, dim=-1).double().cpu().numpy()


def _matched(hypothesis: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> tuple[float, float, float]:
    """Precision, recall and F of one pair."""
    (ours, our_words), (theirs, their_words) = hypothesis, reference
    if not our_words.any() or not their_words.any():
        return 0.0, 0.0, 0.0
    similar = ours @ theirs.T  # L M
    precision = similar.amax(1)[our_words.to(ours.device)].mean().item()
    recall = similar.amax(0)[their_words.to(ours.device)].mean().item()
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if not math.isclose(both, 0) else 0.0


# ---------------------------------------------------------------------------------------------------------- by name

Measure = Callable[[Sequence[str], Sequence[str]], dict[str, Sums]]


def _chexbert(path: str, vocabulary: str = "", device: str = "cpu") -> Measure:
    """The averages of `clinical` by CheXbert's labels (chexbert14_..., chexbert5_...), and semb_score."""
    made = CheXbert(path, vocabulary, device)
    kind = replace(CHEXPERT14, name="chexbert14", parts={"chexbert5": CHEXPERT14.parts["chexpert5"]})
    return lambda hypotheses, references: _labelled(kind, made, hypotheses, references) | made.similarity(hypotheses, references)


def _ct_classifier(path: str, threshold: float = 0.5, device: str = "cpu") -> Measure:
    """The averages of `clinical` by the labels of a classifier of CT-RATE's abnormalities (ct_classifier_...)."""
    made = CtClassifier(path, threshold, device)
    kind = replace(CTRATE18, name="ct_classifier")
    return lambda hypotheses, references: _labelled(kind, made, hypotheses, references)


def _labelled(
    kind: Labeler, made: Callable[[Sequence[str]], list[dict[str, int]]], hypotheses: Sequence[str], references: Sequence[str]
) -> dict[str, Sums]:
    """The averages of `clinical` by the labels of a model, each text once and many at a time."""
    texts = list(dict.fromkeys([*hypotheses, *references]))
    found = dict(zip(texts, made(texts), strict=True))
    return clinical(hypotheses, references, replace(kind, label=found.__getitem__))


def _meteor() -> Measure:
    """METEOR by its own program, where Java and the package that ships it are there; ConfigError where not."""
    if reason := meteor.available():
        raise ConfigError(reason, "or leave metrics.meteor out")
    return lambda hypotheses, references: {"meteor": meteor.meteor(hypotheses, references)}


ADAPTERS: dict[str, Callable[..., Measure]] = {
    "chexbert": _chexbert, "radgraph": RadGraph, "bertscore": BertScore, "cxr_bert": CxrBert, "ct_classifier": _ct_classifier,
    "meteor": _meteor,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ packages of others


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what a package prints and warns of, and what transformers reports meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """huggingface_hub as under HF_HUB_OFFLINE=1, and as it was afterwards."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
