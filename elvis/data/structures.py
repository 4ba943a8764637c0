"""Which structure a sentence of a report is about, by words that a YAML file lists (structures_ct.yaml, structures_cxr.yaml, or a user's).

    Structures.load("ct").assign(["No nodule in the lungs.", "It is clear.", "Hiatal hernia, and fluid around the heart."])
    -> [(2,), (2,), (1, 3)]          1 heart, mediastinum and vessels    2 lung    3 esophagus

A sentence gets its structures by the first rule that has an answer:

    region     the owner of the report says what it is about
    keyword    a word or phrase of the list is in it; there may be several structures
    inherited  it begins like one that goes on ("it", "the largest"), or the one before ends with a comma: those of the one before
    hint       a word that names a structure only if nothing better is told: a "nodule" is in the lung if it is not in the thyroid
    inherited  the sentences before and behind it agree: theirs
    dropped    none of these

After the preparation of reports in SO-ITC (arXiv 2603.04878 and its published code). Its keywords are substrings, and it has no hints. Here
whole words and phrases are looked for, by the matcher of elvis.data.flags, and the longest counts: "clavicle" is not in "supraclavicular", and
"pulmonary artery" is no lung. All words are this project's own; none of it was checked by a physician. Denied or not makes no difference:
"No effusion." is about the pleura.

Where a file has `sided` places, they are told apart by the sides and zones in the sentence, by the rules of elvis.data.flags: the place
"lung" is also met as "right lung", "lower lung", "right lower lung". The most exact name counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from elvis.config import check_yaml
from elvis.data.flags import SIDES, ZONES, Lexicon, Meaning, _anatomy, _variants, _words
from elvis.errors import ConfigError, DataError, nearest

SHIPPED = ("ct", "cxr")
HOW = ("region", "keyword", "inherited", "hint", "dropped")
KEPT = 1 << 16  # different sentences whose words are looked up once


class Structures:
    """The structures of a YAML text and the words that tell them. Immutable, picklable, equal if the texts are.

    names: of the structures, in order. `source` is what a message calls the text. ConfigError lists every mistake in it.
    """

    def __init__(self, text: str, source: str = "structures") -> None:
        self._text, self._source = text, source
        rules = _read(text, source)
        self.names = rules.names
        self._missing, self._regions = rules.missing, rules.regions
        self._look = lru_cache(maxsize=KEPT)(partial(_look, rules))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Structures:
        """The shipped ones, "ct" or "cxr", or those of a file."""
        shipped = str(name_or_path) in SHIPPED
        path = Path(__file__).with_name(f"structures_{name_or_path}.yaml") if shipped else Path(name_or_path)
        try:
            return cls(path.read_text(encoding="utf-8"), path.name)
        except (OSError, UnicodeDecodeError) as error:
            known = nearest(str(name_or_path), SHIPPED)
            raise ConfigError(f"no structures '{name_or_path}'{known}", f"give {' or '.join(SHIPPED)}, or the path of a YAML file") from error

    def to_yaml(self) -> str:
        """The text that these were made of: Structures(text) makes them again."""
        return self._text

    def assign(self, sentences: Sequence[str], regions: Sequence[str] = ()) -> list[tuple[int, ...]]:
        """For each sentence of one report the places in `names` of what it is about, ascending; () = none of them.

        regions: what the owner says each sentence is about, as many as sentences or none; "" and unknown names say nothing.
        """
        return [structures for structures, _ in self._assigned(sentences, regions)]

    def coverage(self, reports: Iterable[Sequence[str]], regions: Iterable[Sequence[str]] = ()) -> dict[str, int]:
        """How many sentences these reports have, and by what they were assigned: region, keyword, inherited, hint; or dropped."""
        by: Counter[str] = Counter()
        for sentences, told in zip(reports, regions or repeat(())):  # noqa: B905 - the regions may be endless
            by.update(how for _, how in self._assigned(sentences, told))
        return {"sentences": by.total(), **{how: by[how] for how in HOW}}

    def missing(self, index: int) -> str:
        """The sentence that stands for a structure that a report does not mention."""
        return self._missing[index]

    def of_region(self, name: str) -> int | None:
        """The structure of a region as an owner calls it, or by its own name; None for others. Case does not matter."""
        return self._regions.get(name.strip().lower())

    def _assigned(self, sentences: Sequence[str], regions: Sequence[str]) -> list[tuple[tuple[int, ...], str]]:
        """(structures, one of HOW) of each sentence."""
        if len(regions) not in (0, len(sentences)):
            raise DataError(f"{len(regions)} regions for {len(sentences)} sentences", 'give one a sentence ("" = not told), or none')
        out: list[tuple[tuple[int, ...], str]] = []
        for text, region, before in zip(sentences, regions or repeat(""), ("", *sentences)):  # noqa: B905
            told, (named, hinted, goes_on) = self.of_region(region), self._look(text)
            if told is not None:
                out.append(((told,), "region"))
            elif named:
                out.append((named, "keyword"))
            elif out and out[-1][0] and (goes_on or before.rstrip().endswith(",")):
                out.append((out[-1][0], "inherited"))
            else:
                out.append((hinted, "hint" if hinted else "dropped"))
        for at in range(1, len(out) - 1):
            if not out[at][0] and out[at - 1][0] and out[at - 1][0] == out[at + 1][0]:
                out[at] = (out[at - 1][0], "inherited")
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structures) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Structures({self._source}: {', '.join(self.names)})"

    def __reduce__(self) -> tuple[type[Structures], tuple[str, str]]:
        return Structures, (self._text, self._source)


# ----------------------------------------------------------------------------------------------------------- sentences


class _Look(NamedTuple):
    """What the words of a sentence say: structures by keywords, by these and hints, and whether it begins with a cue."""

    named: tuple[int, ...]
    hinted: tuple[int, ...]
    goes_on: bool


def _look(rules: _Rules, text: str) -> _Look:
    words = _words(text)
    said = list(rules.lexicon.said(words))
    sure = [meaning for meaning in said if "hint" not in meaning.roles]
    goes_on = any(tuple(words[:length]) in rules.cues for length in rules.cue_lengths)
    named, hinted = _structures(sure, rules), _structures(said, rules)
    return _Look(named, tuple(at for at in hinted if at not in rules.rest) or hinted, goes_on)


def _structures(said: Sequence[Meaning], rules: _Rules) -> tuple[int, ...]:
    names = [name for name in _anatomy(said, rules.lexicon.sided) if name in rules.places]
    exact = [name for name in names if not any(_general(name, other, rules.lexicon.sided) for other in names)]
    return tuple(sorted({structure for name in exact for structure in rules.places[name]}))


def _general(name: str, other: str, sided: Iterable[str]) -> bool:
    """Is `other` a part of `name`? "right lower lung" is one of "right lung" and of "lung"."""
    return set(name.split()) < set(other.split()) and any(name.endswith(place) and other.endswith(place) for place in sided)


# ---------------------------------------------------------------------------------------------------------------- file

MISSING = "No abnormality found in the {name}."
KEYS = ("missing", "structures", "keywords", "hints", "cues", "ignored", "sided", "sides", "zones", "stop", "behind")
OWN_KEYS = ("places", "regions", "missing", "rest")  # of a structure


@dataclass(frozen=True)
class _Rules:
    names: tuple[str, ...]
    missing: tuple[str, ...]
    regions: Mapping[str, int]
    places: Mapping[str, tuple[int, ...]]  # name of a place, with side and zone or without -> structures
    lexicon: Lexicon
    cues: frozenset[tuple[str, ...]]
    cue_lengths: tuple[int, ...]
    rest: frozenset[int]  # structures whose hints count only where no others do


def _read(text: str, source: str) -> _Rules:
    """The rules of a YAML text."""
    import yaml

    try:
        check_yaml(text, source)
        raw = yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"{source}: its lists and mappings are nested too deep", "mend the file") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a day that is none, as 2001-99-99
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())[:200]}", "mend the file") from error
    file = _File(raw)
    rules = file.rules()
    if file.wrong:
        raise ConfigError(f"{source}: {'; '.join(file.wrong)}", "mend the file; structures_ct.yaml shows how one looks")
    return rules


class _File:
    """Reads the parts of a file and collects what is wrong with them."""

    def __init__(self, raw: Any) -> None:
        self.wrong: list[str] = [] if isinstance(raw, dict) else ["it holds no mapping"]
        self.raw: dict[str, Any] = raw if isinstance(raw, dict) else {}
        self.wrong += [f"unknown key '{key}'{nearest(str(key), KEYS)}" for key in self.raw if key not in KEYS]

    def rules(self) -> _Rules:
        structures = {name: self.mapping(own, f"structures.{name}") for name, own in self.mapping(self.raw.get("structures"), "structures").items()}
        if not structures:
            self.wrong.append("'structures' names none")
        for name, own in structures.items():
            self.wrong += [f"unknown key 'structures.{name}.{key}'{nearest(key, OWN_KEYS)}" for key in own if key not in OWN_KEYS]
        places = self.places(structures)
        lexicon = self.lexicon(places)
        cues = frozenset(self.phrases(self.raw.get("cues"), "cues"))
        return _Rules(
            tuple(structures),
            tuple(self.missing(name, own) for name, own in structures.items()),
            self.regions(structures),
            places,
            lexicon,
            cues,
            tuple(sorted({len(cue) for cue in cues})),
            frozenset(index for index, (name, own) in enumerate(structures.items()) if self.rest(name, own)),
        )

    def missing(self, name: str, own: Mapping[str, Any]) -> str:
        """The sentence for a structure: its own, or the file's with its name."""
        sentence = own.get("missing", self.raw.get("missing", MISSING))
        if not isinstance(sentence, str) or not sentence.strip():
            self.wrong.append(f"'missing' of {name} is no sentence")
            return ""
        return sentence.replace("{name}", name)

    def rest(self, name: str, own: Mapping[str, Any]) -> bool:
        value = own.get("rest", False)
        if not isinstance(value, bool):
            self.wrong.append(f"'structures.{name}.rest' must be true or false, not {value!r}")
        return value is True

    def regions(self, structures: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        found: dict[str, int] = {}
        for index, (name, own) in enumerate(structures.items()):
            for region in {name.lower(), *(r.strip().lower() for r in self.strings(own.get("regions"), f"structures.{name}.regions"))}:
                if found.setdefault(region, index) != index:
                    self.wrong.append(f"the region '{region}' is of two structures")
        return found

    def places(self, structures: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        """Which structures a place belongs to. One that names no places is a place itself."""
        found: dict[str, tuple[int, ...]] = {}
        for index, (name, own) in enumerate(structures.items()):
            for place in self.strings(own.get("places", [name]), f"structures.{name}.places"):
                found[place] = (*found.get(place, ()), index)
        return found

    def lexicon(self, places: Iterable[str]) -> Lexicon:
        """Every phrase with what it tells. One may name several places, sides and zones, but is either a keyword or a hint."""
        told: dict[tuple[str, ...], dict[str, list[str]]] = {}
        sided = self.strings(self.raw.get("sided"), "sided")
        known = {"keywords": places, "hints": places, "sides": (*SIDES, "both"), "zones": ZONES}
        self.wrong += [f"'sided' names the place '{place}', which no structure has{nearest(place, places)}" for place in sided if place not in places]
        for kind, allowed in known.items():
            for name, patterns in self.mapping(self.raw.get(kind), kind).items():
                if name not in allowed:
                    self.wrong.append(f"'{kind}.{name}' is no {'place of a structure' if allowed is places else kind[:-1]}{nearest(name, allowed)}")
                for phrase in self.phrases(patterns, f"{kind}.{name}"):
                    told.setdefault(phrase, {}).setdefault(kind, []).append(name)
        for role in ("stop", "behind", "ignored"):
            for phrase in self.phrases(self.raw.get(role), role):
                told.setdefault(phrase, {}).setdefault("roles", []).append(role)
        lexicon = Lexicon(sided)
        for phrase, of in told.items():
            if len({"keywords", "hints"} & of.keys()) + ("ignored" in of.get("roles", ())) > 1:
                self.wrong.append(f"'{' '.join(phrase)}' stands in two of keywords, hints and ignored")
            lexicon.add(phrase, _meaning(**of))
        return lexicon

    # what is in a part

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.wrong.append(f"'{where}' is no mapping of names")
            return {}
        return value

    def strings(self, value: Any, where: str) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.wrong.append(f"'{where}' is no list of texts (put each in quotes)")
            return []
        return value

    def phrases(self, value: Any, where: str) -> list[tuple[str, ...]]:
        """The words of every variant of the patterns in a list, each once."""
        found: dict[tuple[str, ...], None] = {}
        for pattern in self.strings(value, where):
            try:
                variants = [tuple(_words(phrase)) for phrase in _variants(pattern)]
            except DataError:
                self.wrong.append(f"'{where}': a brace is not closed in '{pattern}'")
                continue
            if () in variants:
                self.wrong.append(f"'{where}': '{pattern}' stands for no word")
            found.update(dict.fromkeys(variant for variant in variants if variant))
        return list(found)


def _meaning(
    keywords: Sequence[str] = (), hints: Sequence[str] = (), sides: Sequence[str] = (), zones: Sequence[str] = (), roles: Sequence[str] = ()
) -> Meaning:
    both = [side for name in sides for side in (SIDES if name == "both" else [name])]
    return Meaning(frozenset([*roles, *(["hint"] if hints else [])]), tuple(dict.fromkeys(both)), tuple(zones), (*keywords, *hints))
