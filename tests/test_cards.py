"""MODEL_CARD.md and DATA_CARD.md: what they say is what is known, what they do not know they say, and nothing of a patient is in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from elvis import checkpoints, config
from elvis.checkpoints import cards, export
from elvis.data.problems import Problem
from elvis.data.studies import StudyTable, load
from elvis.data.tables import Card
from elvis.notice import NOTICE
from elvis.registry import DATASETS
from elvis.types import Metric, Sentence, Study
from tests.test_checkpoints import pretrained

SECTIONS = (
    "Intended use", "Out of scope", "Architecture", "Training data", "Training", "Measured", "Failure modes", "Licences", "How to load", "Provenance",
)  # fmt: skip
FACTS = {"data": "phantom", "studies": 64, "step": 600, "seed": 3, "devices": 2, "lists": {"train": "64 studies, list 0123456789abcdef"}}
OWNER = Card("mimic_cxr", "The `title` of | an <owner>", access="credentialed", licence="theirs", url="example.org/a/b/c")


def text(metrics: dict[str, object] | None = None, facts: dict[str, object] | None = None, name: str = "elvis_phantom", **changes: object) -> str:
    told = {**config.load(name).to_dict(), **changes}
    return cards.card(cards.about(pretrained()), metrics or {}, FACTS if facts is None else facts, told)


def table(count: int = 40, card: Card | None = OWNER, **more: object) -> StudyTable:
    def study(number: int) -> Study:
        sentence = Sentence("A canarytext of the patient.")
        return Study(f"canaryid{number}", f"canarypatient{number // 2}", "train", (Path("/canarypath/a.png"),), ("PA",), sentences=(sentence,))

    return StudyTable(tuple(map(study, range(count))), card=card, **more)  # type: ignore[arg-type]


def part(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def test_a_model_card_has_every_part_the_notice_and_a_front_matter_of_yaml() -> None:
    card = text()
    _, front, body = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["license"], about["library_name"]) == ("other", "elvis")
    assert "research-use-only" in about["tags"]
    assert [line.removeprefix("## ") for line in body.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert NOTICE in body


def test_it_says_how_much_was_trained_by_what_on_which_lists() -> None:
    card = text()
    assert "600 steps, 38,400 images seen, seed 3" in card  # 32 a step and device, on two
    assert "train: 64 studies, list 0123456789abcdef" in card
    assert "| test_vit, 2D, tokens of width 64 at stride 16 |" in card
    whole = sum(p.numel() for p in pretrained().model.parameters())
    assert f"| all |  | {whole:,} |" in card
    assert "both encoders began at random" in card
    assert "began with weights of others (`resnet50`)" in text(image={"name": "resnet50", "pretrained": True})


def test_objectives_stand_with_their_weight_and_a_reconstruction_is_called_so() -> None:
    lines = {line.split("`")[1]: line for line in part(text(), "Training").splitlines() if line.startswith("- `")}
    assert set(lines) == {"global_contrastive", "phrase_image", "intra_modal"}
    assert "**A reconstruction**" in lines["intra_modal"]
    assert "reconstruction" not in lines["phrase_image"]
    assert "intra_modal" not in text(objectives={"global_contrastive": {"weight": 0.5}, "intra_modal": None})
    ct = [line for line in part(text(name="structure_ct_phantom"), "Training").splitlines() if "`structure_contrast`" in line]
    assert len(ct) == 1
    assert "**A reconstruction**" in ct[0]


def test_metrics_carry_their_intervals_and_what_was_not_measured_is_called_so() -> None:
    measured = {"swap": Metric(0.75, 0.7, 0.8), "image_rank_after": Metric(5.0), "cnr": Metric(float("nan")), "validation": 0.4}
    card = text(measured)
    assert "| swap | 0.75 | [0.7, 0.8] |" in card
    assert "| image_rank_after | 5 |  |" in card
    assert "| cnr |" not in card
    risks = part(card, "Failure modes")
    assert "**Left and right.** swap = 0.75 [0.7, 0.8]" in risks
    assert "**Negation.** Not measured" in risks
    assert "Nothing was measured yet" in text({"validation": 0.4})
    assert "**Left and right.** Not measured" in text()
    assert cards.numbers(measured) == {"swap": {"value": 0.75, "low": 0.7, "high": 0.8}, "image_rank_after": 5.0, "validation": 0.4}


def test_only_what_saw_drawings_alone_is_said_to_have_seen_drawings_alone() -> None:
    assert "drawings" in part(text(), "Out of scope")
    other = text(facts={**FACTS, "data": "mimic_cxr"})
    assert "drawings" not in other
    assert "drawings" not in part(text(image={"name": "resnet50", "pretrained": True}), "Licences")


def test_a_checkpoint_keeps_both_cards_and_intervals_and_an_export_of_them_has_nothing_to_scrub(tmp_path: Path) -> None:
    told = config.load("elvis_phantom").to_yaml()
    made = cards.data_card("phantom", load("phantom", size=64, train=4, val=0, test=0, comp=0, decor=0, swap=0), {"size": 64, "train": 4})
    path = checkpoints.save(tmp_path / "it", pretrained(), config_yaml=told, metrics={}, provenance=FACTS, data_card=made)
    checkpoints.annotate(path, {"swap": Metric(0.75, 0.7, 0.8)}, pretrained())
    assert json.loads((path / "metrics.json").read_text()) == {"swap": {"value": 0.75, "low": 0.7, "high": 0.8}}
    assert "600 steps" in (path / "MODEL_CARD.md").read_text()
    assert (path / "DATA_CARD.md").read_text() == made
    public = export.export(path, tmp_path / "out", public=True)
    assert (public / "DATA_CARD.md").read_text() == made
    assert (public / "MODEL_CARD.md").read_text().startswith((path / "MODEL_CARD.md").read_text())


def test_a_path_in_a_data_card_is_not_exported(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path / "it", pretrained(), config_yaml="", metrics={}, provenance={}, data_card="lies in /home/someone/data\n")
    assert (export.export(path, tmp_path / "out", public=True) / "DATA_CARD.md").read_text() == "lies in ???\n"


def test_a_data_card_counts_and_names_its_owner_and_says_what_is_not_there() -> None:
    problems = (Problem("D016", "canaryid1 shows nothing", "", 3, ("canaryid1",)),)
    card = cards.data_card("mimic_cxr", table(left_out={"no_text": 5, "position": 0}, problems=problems, excluded=("canarypatient9",)))
    assert "| train | 40 | 20 | 40 | 40 | 0 | 0 | 0 | " in card
    assert "The 'title' of ' an 'owner'. Access: credentialed. Licence: theirs." in card
    left = part(card, "Left out").splitlines()
    assert "- no text: 5" in left
    assert any(line.startswith("- D016, an image shows nothing") and line.endswith(": 3") for line in left)
    assert "- patients left out on purpose: 1" in left
    assert "Nowhere: boxes, masks, labels." in card
    assert "Language: English." in card
    assert "canary" not in card
    assert NOTICE in card


def test_a_data_card_of_phantoms_says_how_they_were_made() -> None:
    made = {"size": 64, "train": 4, "val": 0, "test": 0, "comp": 0, "decor": 0, "swap": 0, "seed": 9, "knobs": {"noise": 0.125}}
    card = cards.data_card("phantom", load("phantom", **made), made)
    assert "no patient" in card
    assert "| train | 4 | none | 4 |" in card
    for row in ("| seed | 9 |", "| level | 2 |", "| knob: noise | 0.125 |", "| knob: jitter | 1 |"):
        assert row in card
    scan = cards.data_card("phantom_ct", load("phantom_ct", size=[16, 32, 32], train=2, val=0, test=0), {"domain": "B"})
    assert "| domain | B |" in scan


def test_a_short_list_of_ones_own_is_not_named_by_a_hash() -> None:
    own = replace(OWNER, name="manifest", access="yours")
    for count, named in ((cards.SHORT - 1, False), (cards.SHORT, True)):
        found = table(count, own)
        assert (cards.digest(s.id for s in found.studies) in cards.data_card("manifest", found)) is named


def test_lists_do_not_depend_on_the_order_of_a_table_and_tell_apart_other_studies() -> None:
    found = table(20).studies
    assert cards.lists(found) == cards.lists(found[::-1])
    assert cards.lists(found)["train"].startswith("20 studies, list ")
    assert cards.lists(found[: cards.SHORT - 1])["train"] == f"{cards.SHORT - 1} studies"
    assert cards.lists(found)["train"] != cards.lists((*found[:-1], replace(found[-1], id="another")))["train"]


@pytest.mark.parametrize("facts", [cards.LANGUAGE, cards.LABELS])
def test_facts_are_of_datasets_that_exist(facts: dict[str, str]) -> None:
    assert set(facts) <= set(DATASETS.names())
