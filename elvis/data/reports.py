r"""A report as a radiologist dictated it, to named sections and sentences with their place in the section.

    parse(text)          -> Report(sections {"findings": ..., "impression": ..., ...}, source)
    sentences(sections)  -> (Sentence(text, section, start, end), ...)
    flags(sentence)      -> Flags(negated, uncertain, prior, abnormal, anatomy)       by a lexicon, see elvis.data.flags

Own implementation after a description of what MIT-LCP's section parser does with MIMIC-CXR (newline, blank, capitals,
colon; names folded by a table; the last occurrence of a section wins; empty sections are dropped; the last paragraph
where neither findings nor impression is named). Different on purpose: "FINDINGS AND IMPRESSION" is findings; headers may
stand at a line's very beginning, in mixed case ("Findings:"), several on a line, alone on theirs without a colon, have
digits ("CHEST, 2 VIEWS:") or one wrong letter. Any string is accepted, in time proportional to its length.

What nobody dictates is taken out first (`clean`): control characters, which a terminal would obey, and those without width or that turn the
direction, which hide words from a lexicon and from a reader's eyes.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from elvis.data.flags import Flags as Flags
from elvis.data.flags import flags as flags
from elvis.data.studies import stable_hash
from elvis.types import Sentence


@dataclass(frozen=True, slots=True)
class Report:
    """Sections by their normalised name, and where the text to learn from was found.

    source: "header" = findings or impression was named; "last_paragraph" = neither, sections["last_paragraph"] holds
    what follows the preamble; "full" = no header at all, the whole text stands in sections["findings"].
    """

    sections: dict[str, str]
    source: Literal["header", "last_paragraph", "full"]


# ------------------------------------------------------------------------------------------------------- headers

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
WORDS = {  # a word that tells the section of an unknown header in capitals: "PRELIMINARY IMPRESSION:"; the first one counts
    "findings": "findings",
    "impression": "impression",
    "conclusion": "impression",
    "comparison": "comparison",
    "history": "indication",
    "indication": "indication",
    "technique": "technique",
    "addendum": "addendum",
}
_SECTION_OF = {name: section for section, names in NAMES.items() for name in names.split("|")}
_ALONE = frozenset(  # what is a header in capitals on a line of its own, without a colon
    name.upper()
    for name, section in _SECTION_OF.items()
    if section in ("findings", "impression", "indication", "comparison", "technique") and "report" not in name
)
_VIEW = re.compile(r"\b(?:chest(?! wall)|views?|portable|frontal|lateral|radiographs?|films?|upright|supine|ap|pa)\b")
_ORGAN = re.compile(  # " LUNGS: Clear." stays in the section it stands in
    r"\b(?:lungs?|airways?|trachea|pleura\w*|heart|cardiac|cardio\w+|mediastin\w+|hil[ai]\w*|bones?|bony|osseous|skelet\w+|spine|ribs?|soft tissues?"
    r"|chest wall|lines?|tubes?|devices?|hardware|abdomen|abdominal|vessels?|vascul\w+|aort\w+|diaphragm\w*|thyroid|esophagus|breasts?|lymph)\b"
)
_INSIDE = re.compile(  # any known name in capitals, and "Findings" or "Impression", at the end of what stands before a colon
    r"(?<!\S)(?:"
    + "|".join(
        re.escape(written).replace(r"\ ", r"\s+")
        for name, section in _SECTION_OF.items()
        for written in (name.upper(), name.capitalize())[: 2 if section in ("findings", "impression") else 1]
    )
    + r")\s*\Z"
)
_COLON = re.compile(r":(?=\s|\Z)")
_REACH = 100  # how far before its colon a header may begin, its indentation included
_CAPITALS = re.compile(r"[A-Z][A-Z0-9 ()/,&.#_:'+-]{1,71}")
_FULL_STOP = re.compile(r"(?<!\.M)\. ")  # "LUNGS CLEAR. IMPRESSION:" is no name, "AP CHEST, 5 A.M. TODAY:" is one
_NOT_LETTERS = re.compile(r"[\d_:]")


def _headers(line: str) -> Iterator[tuple[str, int, int]]:
    """(section, where the header begins, where its text begins) of each header in a line."""
    at = 0
    for colon in _COLON.finditer(line):
        begin = max(at, colon.start() - _REACH)
        section, offset = _header(line[begin : colon.start()], at_beginning=begin == 0)
        if section:
            at = colon.end()
            yield section, begin + offset, at


def _header(before: str, at_beginning: bool) -> tuple[str, int]:
    """The section that is named right before a colon ("" for none), and where its name begins."""
    if at_beginning:
        name = " ".join(before.split())
        if name[:1].isupper() and name.lower() in _SECTION_OF:
            return _SECTION_OF[name.lower()], 0
        if _CAPITALS.fullmatch(name) and not _FULL_STOP.search(name):
            return _section_like(name.lower()), 0
    known = _INSIDE.search(before)
    if known is None:
        return "", 0
    name = " ".join(known[0].split())
    if name != name.upper() and before[: known.start()].rstrip()[-1:] not in (".", "!", "?"):
        return "", 0  # "these findings: ..."
    return _SECTION_OF[name.lower()], known.start()


@lru_cache(maxsize=4096)
def _section_like(name: str) -> str:
    """The section of an unknown header: by a word in it, by likeness to a known name, or itself; "" if it is none (an organ's)."""
    if _ORGAN.search(name) and not _VIEW.search(name):
        return ""
    section = next((WORDS[word] for word in WORDS if word in name), None) or next(filter(None, map(_MISSPELT.get, _shortened(name))), None)
    if section is None and (not _NOT_LETTERS.search(name) or _VIEW.search(name)):  # "L4-L5:" names a place
        section = name
    return section or ""


def _shortened(name: str) -> list[str]:
    """A name, and what is left of it without one of its letters: names with one in common are one mistake apart."""
    return [name, *(name[:i] + name[i + 1 :] for i in range(len(name)))]


_MISSPELT = {short: section for name, section in _SECTION_OF.items() if len(name) > 6 for short in _shortened(name)}


# ------------------------------------------------------------------------------------------------------ sections

_BANNER = re.compile(r"\s*(?:FINAL REPORT|WET READ|PRELIMINARY REPORT)\b")
_LETTER = re.compile(r"[^\W_]")


_STRANGE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]|[^\x00-\x9f]")


def clean(text: str) -> str:
    """A text in composed form (NFC) without control characters (blanks instead) and format characters: zero width, soft hyphens, directions."""
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _STRANGE.sub(lambda match: _INSTEAD.get(unicodedata.category(match[0]), match[0]), text))


_INSTEAD = {"Cc": " ", "Cf": "", "Cs": "\ufffd"}  # by category: control, format, half a surrogate pair


def parse(text: str) -> Report:
    """Split a report into sections; see `Report`. An empty text gives no sections."""
    reports = []
    for lines in reversed(_blocks(clean(text))):
        report = _report(lines)
        if report.sections and (report.source == "header" or _BANNER.match(lines[0])):
            return report
        reports.append(report)
    return next((report for report in reports if report.sections), Report({}, "full"))


def _blocks(text: str) -> list[list[str]]:
    """The lines between full lines of underscores, or from FINAL REPORT on: addenda and wet reads stand above, signatures below."""
    if "\ufffd" in text:
        text = re.sub("\ufffd+", "___", text)
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if "____" in line and len(bare := line.strip()) >= 20 and not bare.strip("_"):
            blocks.append([])
            continue
        if "FINAL REPORT" in line and line.strip() == "FINAL REPORT":
            blocks.append([])
        if blocks[-1] or line.strip():
            blocks[-1].append(line)
    return [lines for lines in blocks if any(map(_LETTER.search, lines))]


def _report(lines: Sequence[str]) -> Report:
    """The report of one block; its first line is not blank."""
    (_, preamble), *pieces = _pieces(lines)
    if not pieces:
        return _without_headers(lines)
    sections = {section: joined for section, content in pieces if (joined := _join(content))}  # the last one that is not empty wins
    if "findings" not in sections:  # " CHEST, PORTABLE AP:" names what was looked at, not a kind of text
        views = [name for name in sections if name not in NAMES and _VIEW.search(name)]
        if views:
            sections["findings"] = sections.pop(views[-1])
    if "findings" in sections or "impression" in sections:
        return Report(sections, "header")
    section, content = pieces[-1]
    head, rest = _cut(content) if section in NAMES else ([], content)
    sections |= {section: _join(head), "last_paragraph": _join(rest) or _without_title(preamble)}
    return Report({name: joined for name, joined in sections.items() if joined}, "last_paragraph")


def _pieces(lines: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(section, its lines) in the order of the text; first, named "", what stands before any header."""
    pieces: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        at = 0
        for section, begin, end in _headers(line) if ":" in line else _alone(line):
            if begin > at:
                pieces[-1][1].append(line[at:begin])
            pieces.append((section, []))
            at = end
        pieces[-1][1].append(line[at:])
    return pieces


def _alone(line: str) -> Iterator[tuple[str, int, int]]:
    if len(line) <= _REACH and (name := line.strip()) in _ALONE:
        yield _SECTION_OF[name.lower()], 0, len(line)


def _without_headers(lines: Sequence[str]) -> Report:
    """The paragraph under " FINAL REPORT / CHEST, AP:", or the text as it is (a caption, a note)."""
    if len(lines) > 1 and _BANNER.match(lines[0]):
        title, rest = _cut(lines[1:])
        if (joined := _join(rest)) and " ".join(title).isupper():
            return Report({"last_paragraph": joined}, "last_paragraph")
        lines = lines[1:]
    return Report({"findings": joined} if (joined := _join(lines)) else {}, "full")


def _without_title(preamble: Sequence[str]) -> str:
    """What stands before the first header, unless it is only a title in capitals."""
    joined = _join(preamble)
    return "" if joined == joined.upper() else joined


def _cut(lines: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The first paragraph, and what follows it."""
    full = [i for i, line in enumerate(lines) if line.strip()]
    blank = next((i for i, j in pairwise(full) if j > i + 1), None)
    return (lines[: blank + 1], lines[blank + 1 :]) if blank is not None else (lines, [])


def join_lines(text: str) -> str:
    """Hard line breaks become blanks; a blank line or a list item still begins a new line."""
    return _join(text.split("\n"))


def _join(lines: Iterable[str]) -> str:
    joined: list[list[str]] = []
    fresh = True
    for raw in lines:
        line = " ".join(raw.split())
        if not line:
            fresh = True
        elif fresh or _begins_item(line, joined[-1]):
            joined.append([line])
            fresh = False
        else:
            joined[-1].append(line)
    return "\n".join(map(" ".join, joined))


_BULLET = re.compile(r"[-*•](?:\s+|(?=[A-Z]))")
_NUMBERED = re.compile(r"\d{1,2}[.)](?:\s+\S|[A-Z][a-z])")


def _begins_item(line: str, before: Sequence[str]) -> bool:
    """Whether a line is a list item; a number is one after a full stop or after an item, else a wrapped "rib / 3. No fracture"."""
    if line[0] in "-*•":
        return _BULLET.match(line) is not None
    return line[0].isdigit() and _NUMBERED.match(line) is not None and (before[-1][-1] in ".:;!?" or _NUMBERED.match(before[0]) is not None)


# ----------------------------------------------------------------------------------------------------- sentences

_STOP = re.compile(  # a run of full stops, with what closes quotes and brackets; also where the blank after it was forgotten
    r"[.!?…](?<![.!?…]{2})(?:[.!?…]*+[\"')\]]*+(?=\s)|(?<=[a-z]{2}\.|XX\.|__\.|[a-z]\)\.)(?=[A-Z][a-z]))"
)
_NUMBER = re.compile(r"(\d\d?)[.)](?:\s+(?=[\w(\"'])|(?=[A-Z][a-z]))")
NEVER_LAST = "dr|drs|mr|mrs|ms|prof|st|vs|e.g|i.e|approx|ca|cf|fig|resp|pt"  # what ends in a full stop and no sentence
SELDOM_LAST = "a.m|p.m|am|pm|etc|al|u.s|mm|cm|ml|cc|rt|lt|bilat|jan|feb|apr|aug|sept|oct|nov|dec"  # ... or one if a capital letter follows
_NEVER_LAST, _SELDOM_LAST = frozenset(NEVER_LAST.split("|")), frozenset(SELDOM_LAST.split("|"))
_CAPITAL = re.compile(r"\s+[\"'(\[]*(?!XX)[A-Z]")
_WORD = re.compile(r"\w+")
_SAID = re.compile(r"[^\W\d_Xx]")  # a letter that is not of what a de-identification left


def sentences(
    sections: Mapping[str, str],
    use: str | Sequence[str] = ("findings", "impression"),
    *,
    otherwise: str | Sequence[str] = ("last_paragraph",),
    min_words: int = 2,
) -> tuple[Sentence, ...]:
    """The sentences of the sections in `use`; where none of them has text, those of the first in `otherwise` that has.

    `section[start:end] == text`. Sentences of fewer than `min_words` words are dropped ("no pneumothorax" has two), list
    numbers are not part of a sentence. What a de-identification left ("___", "XXXX") stays, but is no sentence alone.
    """
    use, otherwise = ((names,) if isinstance(names, str) else names for names in (use, otherwise))
    names = [name for name in use if sections.get(name)] or [name for name in otherwise if sections.get(name)][:1]
    return tuple(
        Sentence(sys.intern(text), name, start, end)  # the same sentences stand in many reports
        for name in names
        for text, start, end in _spans(sections[name])
        if _has_words(text, min_words)
    )


def _has_words(text: str, count: int) -> bool:
    return _SAID.search(text) is not None and _words(count).search(text) is not None


@lru_cache(maxsize=8)
def _words(count: int) -> re.Pattern[str]:
    return re.compile(rf"\b\w++(?:\W++\w++){{{count - 1}}}")


def _spans(section: str) -> Iterator[tuple[str, int, int]]:
    """(text, start, end) of the sentences of a section, whose lines never share a sentence."""
    at = 0
    for line in section.split("\n"):
        start = 0
        for end, resume in _cuts(line):
            if resume < start:  # the full stop of a list number
                continue
            text = line[start:end].lstrip()
            begin = at + end - len(text)
            if text := text.rstrip():
                yield text, begin, begin + len(text)
            start = resume
        at += len(line) + 1


def _cuts(line: str) -> list[tuple[int, int]]:
    """(where a sentence ends, where the next may begin), in order."""
    cuts = [(stop, stop) for stop in _stops(line)]
    numbers = list(_list_numbers(line))
    if numbers:
        cuts = sorted(cuts + numbers)
    if line[:1] in ("-", "*", "•") and (bullet := _BULLET.match(line)):
        cuts.insert(0, (0, bullet.end()))
    cuts.append((len(line), len(line)))
    return cuts


def _list_numbers(line: str) -> Iterator[tuple[int, int]]:
    """Spans of "1. ", "2. ", ...: in order, the first one at a sentence's beginning. "1.5 cm" and "C7." are none."""
    expected = 1
    for match in _NUMBER.finditer(line):
        start, end = match.span()
        if start and not line[start - 1].isspace():
            continue
        number, before = int(match[1]), line[max(0, start - 8) : start].rstrip()[-1:]
        due = number == expected and (before in (*".:;!?", "") or (expected > 1 and line[end].isupper()))
        if due or not start:
            expected = number + 1
            yield start, end


def _stops(line: str) -> Iterator[int]:
    """Where sentences end: after a full stop that does not belong to an abbreviation, an initial or an ellipsis."""
    for match in _STOP.finditer(line):
        start, end = match.span()
        token = line[max(0, start - 9) : start].rpartition(" ")[2]
        if (len(token) > 7 and end == start + 1) or not _goes_on(line, token.lstrip("([\"'"), start, end):
            yield end


def _goes_on(line: str, token: str, start: int, end: int) -> bool:
    """Whether a sentence goes on after the full stop at `start` that follows `token`."""
    word = token.lower().rstrip(".")
    if word in _NEVER_LAST or (len(token) == 1 and token.isupper()):
        return True
    if word in _SELDOM_LAST:
        return _CAPITAL.match(line, end) is None
    after = line[end : end + 2].lstrip()[:1]
    if after.isdigit():  # "No. 3", and the "1 . 5 cm" of tokenised texts
        return word == "no" or (not word and line[max(0, start - 2) : start - 1].isdigit())
    return after.islower() and line.startswith(("...", "…"), start)


# ---------------------------------------------------------------------------------------------- equality of texts


def normalise(text: str) -> str:
    """Lower case, punctuation and white space folded: two texts that say the same with other commas become equal."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_WORD.findall(text.lower()))


def text_hash(text: str) -> int:
    """A stable signed 64-bit hash of the normalised text: equal texts are never each other's negatives."""
    return stable_hash(normalise(text))
