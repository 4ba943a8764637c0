"""For mkdocs: links that leave docs/ (../LOG.md, ../benchmarks/results/x.md) lead to pages and files of the site, too.

A page links as it must on a code host, relative to where its file lies in the repository. Whatever file outside docs/ is linked, from
any page or from a page that is linked, joins the site below repository/, and the links are turned so that mkdocs checks them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PLACE = "repository/"  # of the site, for what lies outside docs/
LINK = re.compile(r"(\]\()(?!\w+:|#|<)([^)\s#]+)")  # ](target, without an anchor; no URL
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the files outside docs/ that pages link."""
    todo = [(file.src_uri, _text(DOCS / file.src_uri)) for file in files.documentation_pages()]
    known = {uri for uri, _ in todo}
    while todo:
        uri, text = todo.pop()
        for target in (match[2] for part in FENCE.split(text) if not part.startswith("```") for match in LINK.finditer(part)):
            found = _source(uri, target)
            inside = _uri(found) if found is not None else ""
            if not inside.startswith(PLACE) or inside in known:
                continue
            known.add(inside)
            whole = ROOT / found
            files.append(File.generated(config, inside, content=_text(whole) if whole.suffix == ".md" else whole.read_bytes()))
            todo += [(inside, _text(whole))] if whole.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The same links, relative to the page's place in the site."""
    uri = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        found = _source(uri, match[2])
        return match[0] if found is None else match[1] + os.path.relpath(_uri(found), os.path.dirname(uri) or ".").replace(os.sep, "/")

    return _outside_fences(markdown, lambda part: LINK.sub(turned, part))


def _source(uri: str, target: str) -> str | None:
    """The file of the repository that a page's link means, from its root; None where there is none (mkdocs then says so)."""
    own = uri.removeprefix(PLACE) if uri.startswith(PLACE) else f"docs/{uri}"
    path = os.path.normpath(os.path.join(os.path.dirname(own), target))
    return None if path.startswith("..") or not (ROOT / path).is_file() else path.replace(os.sep, "/")


def _uri(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else PLACE + path


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(markdown))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
