r"""A report as a radiologist dictated it, to named sections and sentences with their place in the section.

    parse(text) -> Report(sections {"findings": ..., "impression": ..., ...}, source)
    sentences(sections) -> (Sentence(text, section, start, end), ...)

Own implementation after a description of what MIT-LCP's section parser does with MIMIC-CXR (newline, blank, capitals,
colon; names folded by a table; the last occurrence of a section wins; empty sections are dropped; the last paragraph
where neither findings nor impression is named). Different on purpose: "FINDINGS AND IMPRESSION" is findings, known
names are headers also in mixed case ("Findings:") and after a full stop, and misspelt ones are found by likeness.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal

from elvis.data.studies import stable_hash
from elvis.types import Sentence


@dataclass(frozen=True)
class Report:
    """Sections by their normalised name, and where the text to learn from was found.

    source: "header" = findings or impression was named; "last_paragraph" = neither, sections["last_paragraph"] holds
    what follows the preamble; "full" = no header at all, the whole text stands in sections["findings"].
    """

    sections: dict[str, str]
    source: Literal["header", "last_paragraph", "full"]


# ------------------------------------------------------------------------------------------------------ sections

NAMES = {  # section -> how it is written in reports; lower case
    "findings": "findings|finding|findings and impression|findings/impression|impression and findings|report|final report|observations",
    "impression": "impression|impressions|conclusion|conclusions|summary|opinion|interpretation|impression and plan|impression and recommendation"
    "|impression and recommendations|final impression",
    "indication": "indication|indications|clinical indication|clinical indications|reason for exam|reason for examination|reason for study|history"
    "|clinical history|medical history|patient history|clinical information|clinical data|clinical details|clinical statement",
    "comparison": "comparison|comparisons|comparison study|comparison studies|comparison exam|comparison exams|comparison film|comparison films"
    "|compared to|prior study|prior studies|correlation",
    "technique": "technique|technical factors|views|procedure comment",
    "examination": "examination|exam|examinations|type of examination|procedure|study",
    "recommendation": "recommendation|recommendations|recommendation(s)|notification|notifications",
    "wet read": "wet read",
    "addendum": "addendum",
}
_SECTION_OF = {name: section for section, names in NAMES.items() for name in names.split("|")}
_VIEW = re.compile(r"\b(?:chest|view|views|portable|frontal|lateral|radiograph|radiographs|film|films|upright|supine|ap|pa)\b")
_ORGAN = re.compile(
    r"\b(?:lungs?|airways?|pleura|heart|cardiac|mediastin\w+|cardiomediastin\w+|hil[ai]\w*|bones?|osseous|lines|tubes|devices|abdomen|vessels?)\b"
)
# "CHEST, TWO VIEWS:" at a line's beginning; inside a line any known name in capitals, and "Findings:" or "Impression:"
_KNOWN = [name.upper() for name in _SECTION_OF] + [name.capitalize() for name, of in _SECTION_OF.items() if of in ("findings", "impression")]
_INSIDE = "|".join(re.escape(name) for name in sorted(_KNOWN, key=len, reverse=True))
_HEADER = re.compile(rf"(?:^[ \t]*(?P<line>[A-Z][A-Za-z ()/,&-]{{1,70}}?)|(?<=\s)(?P<inside>{_INSIDE}))[ \t]*:(?=\s|$)", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*_{20,}[ \t]*$", re.MULTILINE)
_BANNER = re.compile(r"\A\s*(?:FINAL REPORT|WET READ|PRELIMINARY REPORT)\b[^\n]*\n")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def parse(text: str) -> Report:
    """Split a report into sections; see `Report`. An empty text gives no sections."""
    text = _last_block(text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffd", "___"))
    headers = list(_headers(text))
    if not headers:
        return _without_headers(text)
    ends = [begin for _, begin, _ in headers[1:]] + [len(text)]
    contents = [(section, text[start:end]) for (section, _, start), end in zip(headers, ends, strict=True)]
    sections = {name: joined for name, content in contents if (joined := join_lines(content))}  # the last one that is not empty wins
    if "findings" not in sections:  # " CHEST, PORTABLE AP:" names what was looked at, not a kind of text
        views = [name for name in sections if name not in NAMES and _VIEW.search(name)]
        if views:
            sections["findings"] = sections.pop(views[-1])
    if "findings" in sections or "impression" in sections:
        return Report(sections, "header")
    section, content = contents[-1]
    head, _, rest = _cut(content) if section in NAMES else ("", "", content)
    sections |= {section: join_lines(head), "last_paragraph": join_lines(rest)}
    return Report({name: joined for name, joined in sections.items() if joined}, "last_paragraph")


def _without_headers(text: str) -> Report:
    """The paragraph under " FINAL REPORT / CHEST, AP:", or the text as it is (a caption, a note)."""
    body = _BANNER.sub("", text)
    title, _, rest = _cut(body)
    if body != text and title == title.upper() and (joined := join_lines(rest)):
        return Report({"last_paragraph": joined}, "last_paragraph")
    return Report({"findings": joined} if (joined := join_lines(body)) else {}, "full")


def _last_block(text: str) -> str:
    """What stands under the last full line of underscores: above it are addenda and wet reads."""
    blocks = [block for block in _RULE.split(text) if re.search(r"[^\W_]", block)]
    return blocks[-1] if blocks else ""


def _headers(text: str) -> Iterator[tuple[str, int, int]]:
    """(section, where the header begins, where its text begins)."""
    for match in _HEADER.finditer(text):
        name = match["line"] or match["inside"]
        capitals, folded = name == name.upper(), " ".join(name.lower().split())
        section = _SECTION_OF.get(folded)
        if match["inside"] and not capitals and text[: match.start()].rstrip()[-1:] not in (".", "!", "?"):
            continue  # "these findings: ..."
        if section is None and capitals and not _ORGAN.search(folded):  # " LUNGS: Clear." stays in the section it stands in
            section = _named_like(folded)
        if section:
            yield section, match.start(), match.end()


@lru_cache(maxsize=4096)
def _named_like(name: str) -> str:
    """The section of an unknown header: of the most similar known name, or the header itself."""
    close = get_close_matches(name, _SECTION_OF, n=1, cutoff=0.84)
    return _SECTION_OF[close[0]] if close else name


def _cut(text: str) -> tuple[str, str, str]:
    """The text before the first blank line, that line, and the text after it."""
    text = text.strip("\n")
    match = _BLANK_LINE.search(text)
    return (text[: match.start()], match[0], text[match.end() :]) if match else (text, "", "")


def join_lines(text: str) -> str:
    """Hard line breaks become blanks; a blank line or a list item still begins a new line."""
    lines: list[str] = []
    fresh = True
    for raw in text.split("\n"):
        line = " ".join(raw.split())
        if not line:
            fresh = True
        elif fresh or _BULLET.match(line) or (_NUMBERED.match(line) and (lines[-1][-1] in ".:;!?" or _NUMBERED.match(lines[-1]))):
            lines.append(line)
            fresh = False
        else:
            lines[-1] += " " + line
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------ sentences

_BULLET = re.compile(r"[-*•]\s+")
_NUMBERED = re.compile(r"\d{1,2}[.)]\s+\S")
_NUMBER = re.compile(r"(?<!\S)(\d{1,2})[.)]\s+(?=[^\W\d]|[(\"'])")
_STOP = re.compile(r"(?<=\S)[.!?]+[\"')\]]*(?=\s)|(?<=[a-z]{2})\.(?=[A-Z][a-z])")  # also where the blank was forgotten
_NEVER_LAST = frozenset(["dr", "drs", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "approx", "ca", "cf", "fig", "resp", "pt"])
_SELDOM_LAST = frozenset(["a.m", "p.m", "am", "pm", "etc", "al", "u.s"])  # they end a sentence only where a capitalised word follows
_LAST_TOKEN = re.compile(r"[\w.]*$")
_CAPITALISED = re.compile(r"[\"'(\[]*[A-Z](?:[a-z]|\s)")


def sentences(sections: Mapping[str, str], use: tuple[str, ...] = ("findings", "impression")) -> tuple[Sentence, ...]:
    """The sentences of the sections in `use`, or of the last paragraph where none of them exists.

    `section[start:end] == text`. Sentences of fewer than two words are dropped ("no pneumothorax" has two), list
    numbers are not part of a sentence, `___` (a removed name or date) stays.
    """
    names = [name for name in use if sections.get(name)] or ["last_paragraph"]
    return tuple(
        Sentence(sections[name][start:end], name, start, end)
        for name in names
        if name in sections
        for start, end in _spans(sections[name])
        if _has_two_words(sections[name][start:end])
    )


def _spans(section: str) -> Iterator[tuple[int, int]]:
    """(start, end) of the sentences of a section, whose lines never share a sentence."""
    at = 0
    for line in section.split("\n"):
        for start, end in _line_spans(line):
            yield at + start, at + end
        at += len(line) + 1


def _line_spans(line: str) -> Iterator[tuple[int, int]]:
    bullet = _BULLET.match(line)
    start = bullet.end() if bullet else 0
    cuts = sorted([*_list_numbers(line), *((stop, stop) for stop in _stops(line)), (len(line), len(line))])
    for end, resume in cuts:
        if resume < start:
            continue
        text = line[start:end]
        if text.strip():
            yield start + len(text) - len(text.lstrip()), start + len(text.rstrip())
        start = resume


def _list_numbers(line: str) -> Iterator[tuple[int, int]]:
    """Spans of "1. ", "2. ", ...: in order, the first one at a sentence's beginning. "1.5 cm" and "C7." are none."""
    expected = 1
    for match in _NUMBER.finditer(line):
        before = line[: match.start()].rstrip()
        begins = not before or before[-1] in ".:;!?"
        follows = expected > 1 and line[match.end()].isupper()
        if (int(match[1]) == expected and (begins or follows)) or (begins and not before):
            expected = int(match[1]) + 1
            yield match.span()


def _stops(line: str) -> Iterator[int]:
    """Where sentences end: after a full stop that does not belong to an abbreviation or an initial."""
    for match in _STOP.finditer(line):
        token = _LAST_TOKEN.search(line, 0, match.start())[0]  # type: ignore[index]
        word = token.lower().strip(".")
        if line[match.start()] == ".":
            if word in _NEVER_LAST or (len(token) == 1 and token.isupper()):
                continue
            if word in _SELDOM_LAST and not _CAPITALISED.match(line, match.end() + 1):
                continue
        yield match.end()


def _has_two_words(text: str) -> bool:
    words = re.findall(r"\w+", text)
    return len(words) >= 2 and any(word.strip("_") for word in words)


# ---------------------------------------------------------------------------------------------- equality of texts


def normalise(text: str) -> str:
    """Lower case, punctuation and white space folded: two texts that say the same with other commas become equal."""
    return " ".join(re.sub(r"[^\w]+", " ", unicodedata.normalize("NFKC", text).lower()).split())


def text_hash(text: str) -> int:
    """A stable signed 64-bit hash of the normalised text: equal texts are never each other's negatives."""
    return stable_hash(normalise(text))
