"""What a sentence says, where it is one of a phantom CT's report: the inverse of elvis.data.phantoms.scan_words, for both domains.

    parse("There is a nodule in the right upper lobe.")  -> Statement(claims=(("nodule", "right upper lobe"),))
    parse("there are two nodules in the left lower lobe") -> the same claim twice
    parse("No pleural effusion on the right.")           -> Statement(denied=(("pleural effusion", "right pleura"),))
    parse("the heart is of normal size")                 -> Statement(normal=("heart",))
    parse("there is a nodule nodule")                    -> None

The language is finite (every form with every structure of its kind), so it is written out once from the same tables and looked up; nothing
else is recognised. Case does not matter, nor what stands between the words: stops, commas, colons, hyphens (kept, blank, or dropped).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from elvis.data.phantoms.parse import split
from elvis.data.phantoms.scan_anatomy import KINDS
from elvis.data.phantoms.scan_words import WORDS

__all__ = ["Statement", "parse", "readings", "split"]


@dataclass(frozen=True, slots=True)
class Statement:
    """What a sentence says.

    claims: (kind, structure) of what it says is there, one for each ("two nodules": twice); structure "" = not said.
    normal: structures it calls normal; "" = the whole chest.
    denied: (kind, structure) of what it says is not there; structure "" = nowhere.
    """

    claims: tuple[tuple[str, str], ...] = ()
    normal: tuple[str, ...] = ()
    denied: tuple[tuple[str, str], ...] = ()


def parse(sentence: str) -> Statement | None:
    """What the sentence says; None where no report of a phantom CT has it. Takes any string."""
    return _language().get(_key(sentence))


def readings(domain: str) -> Iterator[tuple[str, Statement]]:
    """Every sentence of a domain's reports with what it says."""
    words = WORDS[domain]
    for kind, about in KINDS.items():
        two = (*words.two, words.two_short) if kind == "nodule" else ()
        for structure in about.places:
            for form in (*words.found[kind], words.short[kind]):
                yield form.fill(structure), Statement(claims=((kind, structure),))
            for form in two:
                yield form.fill(structure), Statement(claims=((kind, structure),) * 2)
    for structure, forms in (*words.normal.items(), ("", words.nothing)):
        for form in forms:
            denied = tuple((kind, structure) for kind in form.denies)
            yield form.fill(structure), Statement(denied=denied) if denied else Statement(normal=(structure,))


@lru_cache(maxsize=1)
def _language() -> dict[str, Statement]:
    """Key -> meaning; of sentences that have a hyphen, also without it."""
    language = {}
    for domain in WORDS:
        for text, statement in readings(domain):
            language[_key(text)] = language[_key(text.replace("-", ""))] = statement
    return language


def _key(sentence: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", sentence.lower()))
