"""What every dataset keeps to that has a layout of phantoms: both are found by themselves, a new pair is tested as soon as it is there.

A sound export gives sound studies whose images, boxes and texts are those of the phantoms; an export with a mistake leads to the code
that the mistake is named after, in a message that holds a place, a fix and no text of a report.
"""

from __future__ import annotations

import inspect
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from elvis.data import doctor, images, masks, studies, volumes
from elvis.data.__main__ import main
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import layouts
from elvis.data.problems import Problem
from elvis.data.studies import StudyTable, in_fractions, placed
from elvis.errors import ConfigError, DataError
from elvis.registry import DATASETS
from elvis.types import Study
from tests.datasets.conftest import Exported, assert_sound, masks_of

LAYOUTS = layouts()
OWNERS = sorted({layout.dataset for layout in LAYOUTS.values()})
IN_PREPARE = {"D052"}  # seen when all pixels are: tests/test_codes.py
MISTAKES = [(name, mistake) for name, layout in LAYOUTS.items() for mistake in layout.breaks if mistake[:4] not in IN_PREPARE]
WITHOUT_OWNER = {"folders", "manifest", "phantom", "phantom_ct", "prepared"}  # your own, computed, made by prepare: nobody has a layout for these

REASONS = {  # why studies are left out
    "excluded", "position", "two_patients", "no_patient", "no_chest", "no_row", "unreadable",
    "no_text", "no_report", "no_image", "no_mask", "no_boxes",
}  # fmt: skip
OPTIONS = {  # an option without which a mistake stays unseen
    ("chexlocalize", "D031"): {"truth": "annotations"},
    ("ms_cxr", "D004_split"): {"split": "owner"},
}
NOT_THERE = {"Other lesion"}  # what a phantom reader draws where nothing is


@pytest.fixture(scope="session")
def table_of(exported: Exported):
    """layout -> what its adapter makes of its sound export."""
    return cache(lambda name: DATASETS.create(LAYOUTS[name].dataset, root=str(exported(name)[0])))


# ------------------------------------------------------------------------------------------------------------ adapters


def test_every_dataset_of_an_owner_has_a_layout() -> None:
    assert set(OWNERS) == set(DATASETS.names()) - WITHOUT_OWNER


@pytest.mark.parametrize("name", OWNERS)
def test_options_are_keywords_that_are_typed_and_explained(name: str) -> None:
    adapter = DATASETS.get(name)
    source, explained = inspect.getsource(adapter).splitlines(), adapter.__doc__ or ""
    assert explained.strip()
    for option, parameter in inspect.signature(adapter).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.annotation is not inspect.Parameter.empty
        assert (option == "root") == (parameter.default is inspect.Parameter.empty)
        comments = [line.partition("  # ")[2] for line in source if re.match(rf"\s+{option}: ", line)]
        assert option == "root" or any(comments), f"{option} has no comment"


MEANINGS = {  # an option of this name has this type and default wherever it is
    "positions": ("Sequence[View]", ("PA", "AP")),
    "one_per_study": ("Literal['first', 'all']", "first"),
    "exclude": ("str | Sequence[str]", ()),
    "images": ("str | None", None),
}


@pytest.mark.parametrize("option", MEANINGS)
def test_an_option_of_one_name_has_one_type_and_default(option: str) -> None:
    found = {name: parameter for name in OWNERS if (parameter := DATASETS.options(name).get(option))}
    assert len(found) > 1
    assert {(p.annotation.replace('"', "'"), p.default) for p in found.values()} == {MEANINGS[option]}


def having(*options: str) -> list[str]:
    """The layouts whose dataset has these options."""
    return [name for name, layout in LAYOUTS.items() if set(options) <= set(DATASETS.options(layout.dataset))]


@pytest.mark.parametrize("name", having("positions", "one_per_study"))
def test_the_better_view_comes_first_and_first_means_that_one(name: str, exported: Exported) -> None:
    dataset, root = LAYOUTS[name].dataset, str(exported(name)[0])
    for positions in (("LATERAL", "AP", "PA"), ("PA", "AP", "OTHER", "UNKNOWN", "LATERAL")):
        every, first = (DATASETS.create(dataset, root=root, positions=positions, one_per_study=choice).studies for choice in ("all", "first"))
        assert any(len(study.images) > 1 for study in every)
        for whole, one in zip(every, first, strict=True):
            assert list(whole.views) == sorted(whole.views, key=positions.index)
            assert (one.id, one.images, one.views) == (whole.id, whole.images[:1], whole.views[:1])
    with pytest.raises(ConfigError, match="positions"):
        studies.load(dataset, root=root, positions=["LL"])


@pytest.mark.parametrize("name", having("exclude"))
def test_patients_are_left_out_by_a_list_or_a_file_and_named(name: str, exported: Exported, table_of, tmp_path: Path) -> None:
    dataset, root = LAYOUTS[name].dataset, str(exported(name)[0])
    whole: StudyTable = table_of(name)
    patient = whole.studies[0].patient
    (tmp_path / "listed.txt").write_text(f"{patient}\nnobody\n")
    for exclude in ([patient, "nobody"], str(tmp_path / "listed.txt")):
        table = DATASETS.create(dataset, root=root, exclude=exclude)
        assert table.excluded == (patient,)
        assert [study.id for study in table.studies] == [study.id for study in whole.studies if study.patient != patient]
        assert table.left_out["excluded"] == len(whole.studies) - len(table.studies)
        assert table.counts == whole.counts
    with pytest.raises(DataError, match=r"cannot read .*nothing\.txt.*\n.*data\.exclude") as caught:
        DATASETS.create(dataset, root=root, exclude=str(tmp_path / "nothing.txt"))
    assert caught.value.code == "D001"


@pytest.mark.parametrize("name", having("images"))
def test_images_may_lie_elsewhere(name: str, exported: Exported, table_of, tmp_path: Path) -> None:
    """Everything of the root but its images and folders of them."""
    root, _ = exported(name)
    for path in root.iterdir():
        if path.is_file() or path.name == "segmentations":
            (tmp_path / path.name).symlink_to(path)
    table = DATASETS.create(LAYOUTS[name].dataset, root=str(tmp_path), images=str(root))
    for one, other in zip(table.studies, table_of(name).studies, strict=True):
        assert [image.path.resolve() for image in one.images] == [image.path.resolve() for image in other.images]
    with pytest.raises(DataError, match=r"no folder .*nowhere\ndata\.images") as caught:
        DATASETS.create(LAYOUTS[name].dataset, root=str(root), images=str(tmp_path / "nowhere"))
    assert caught.value.code == "D001"


# --------------------------------------------------------------------------------------------------------- sound trees


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sound_tree_is_read_without_an_error_and_the_same_twice(name: str, exported: Exported, table_of) -> None:
    dataset, root = LAYOUTS[name].dataset, str(exported(name)[0])
    table: StudyTable = table_of(name)
    assert DATASETS.create(dataset, root=root) == table
    assert pickle.loads(pickle.dumps(table)) == table
    loaded = studies.load(dataset, root=root, need_text=False)  # ids are unique, patients in one split, no problem is an error
    assert loaded.studies == table.studies
    assert table.card is not None
    assert (table.card.name, bool(table.card.access), bool(table.card.licence), bool(table.card.url)) == (dataset, True, True, True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_words_are_the_same_everywhere(name: str, table_of) -> None:
    table: StudyTable = table_of(name)
    assert [note for note in table.notes if note.startswith("split: ")] == [table.notes[0]]
    assert all(count > 0 and reason in REASONS for reason, count in table.left_out.items())
    for problem in table.problems:
        assert problem.what.startswith(f"{table.card.name}: ")
        assert len(problem.what) < 400


@pytest.mark.parametrize("name", LAYOUTS)
def test_studies_are_sound_and_their_files_lie_under_the_root(name: str, exported: Exported, table_of) -> None:
    root, _ = exported(name)
    for study in table_of(name).studies:
        assert_sound(study)
        assert {image.root for image in study.images} == {str(root)}
        for grounding in study.groundings:
            assert grounding.phrase
            assert grounding.boxes or grounding.masks or study.split == "test"


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_are_those_of_the_phantoms(name: str, exported: Exported, table_of) -> None:
    _, written = exported(name)
    seen = 0
    for study in table_of(name).studies:
        for image in study.images:
            if (shown := written.truth.get(image.id)) is None:
                continue  # a lateral image, a head
            seen += 1
            truth = shown.read() if isinstance(shown, Film) else volumes.Volume(shown.volume(), None).windowed(volumes.CT_WINDOW)
            found = images.read(image)
            assert found.shape == truth.shape
            assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.97  # JPEG, windows and percentiles differ; turned or mixed up ones fail
    assert seen


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.kind == "film"])
def test_boxes_lie_where_the_findings_of_the_phantoms_do(name: str, exported: Exported, table_of) -> None:
    _, written = exported(name)
    for study in table_of(name).studies:
        for grounding in study.groundings:
            film: Film = written.truth[study.images[grounding.image].id]
            findings = [box for place in range(len(film.truth.findings)) for box in film.boxes(place)]
            for box in placed(in_fractions(grounding), film.height, film.width).boxes:
                assert grounding.category in NOT_THERE or max(overlap(box, finding) for finding in findings) > 0.5


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union."""
    shared = max(0.0, min(one[2], other[2]) - max(one[0], other[0])) * max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    return shared / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)) - shared)


@pytest.mark.parametrize("name", LAYOUTS)
def test_masks_have_the_size_of_their_images(name: str, table_of) -> None:
    for study in table_of(name).studies[:4]:
        for mask in masks_of(study):
            shape = images.read(study.images[mask.image]).shape
            where = masks.decode_volume(mask) if mask.kind in masks.VOLUMES else masks.decode(mask, *shape)
            assert where.shape == shape


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_doctor_finds_nothing_wrong_and_says_nothing_private(name: str, exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    root, written = exported(name)
    assert main(["doctor", LAYOUTS[name].dataset, f"root={root}"]) == 0
    assert not_private(capsys.readouterr().out, written.truth)


@pytest.mark.parametrize("name", LAYOUTS)
def test_counts_that_differ_from_the_owners_are_an_error_only_when_strict(name: str, exported: Exported, table_of) -> None:
    dataset, root = LAYOUTS[name].dataset, str(exported(name)[0])
    if table_of(name).counts:
        with pytest.raises(DataError, match="instead of") as caught:
            studies.load(dataset, root=root, need_text=False, strict=True)
        assert caught.value.code == "D063"


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.fixture(scope="session")
def usual(exported: Exported):
    """layout, options -> how often each code is met in its sound export."""

    @cache
    def count(name: str, options: tuple[tuple[str, str], ...]) -> Counter[str]:
        codes: Counter[str] = Counter()
        for problem in met(LAYOUTS[name].dataset, exported(name)[0], dict(options)):
            codes[problem.code] += getattr(problem, "count", 1)
        return codes

    return count


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_leads_to_its_code(name: str, mistake: str, exported: Exported, usual) -> None:
    root, written = exported(name, mistake)
    options, code = OPTIONS.get((name, mistake), {}), mistake[:4]
    left = usual(name, tuple(options.items()))[code]  # of a sound export: a film without a mask, say
    for problem in met(LAYOUTS[name].dataset, root, options):
        if problem.code == code and (left := left - getattr(problem, "count", 1)) < 0:
            break
    else:
        pytest.fail(f"{name}: {mistake} does not lead to {code}")
    assert problem.fix or (isinstance(problem, Problem) and problem.severity != "E")
    assert len(str(problem) if isinstance(problem, DataError) else problem.what) <= 400
    assert not_private(f"{problem.what} {problem.fix}", written.truth)


def met(dataset: str, root: Path, options: dict[str, str]) -> Iterator[Problem | DataError]:
    """Everything that is wrong with a tree, as it comes: by its adapter, in its pixels, by the doctor."""
    try:
        table = DATASETS.create(dataset, root=str(root), **options)
    except DataError as error:
        yield error
        return
    yield from table.problems
    yield from caught(studies.checked, table)
    for study in table.studies:
        yield from _of(study)
    yield from doctor.examine(dataset, table).problems


def _of(study: Study) -> Iterator[Problem | DataError]:
    """What is wrong with the files of a study."""
    shapes = {}
    for place, image in enumerate(study.images):
        try:
            look = images.look(image)
        except DataError as error:
            yield error
        else:
            shapes[place] = look.pixels.shape
            yield from (Problem(code, "", "") for code in look.notes)
    for grounding in study.groundings:
        if grounding.boxes and grounding.image in shapes:
            yield from caught(placed, grounding, *shapes[grounding.image])
    for mask in masks_of(study):
        if mask.kind in masks.VOLUMES:
            yield from caught(masks.decode_volume, mask)
            yield from caught(volumes.check_aligned, study.images[mask.image], mask.data)
        elif mask.image in shapes:
            yield from caught(masks.decode, mask, *shapes[mask.image])


def caught(call, *arguments) -> Iterator[DataError]:
    try:
        call(*arguments)
    except DataError as error:
        yield error


def not_private(text: str, truth: dict) -> bool:
    """Whether no sentence of the phantoms is in the text."""
    spoken = {s.text for shown in truth.values() for s in (shown.study.sentences if isinstance(shown, Film) else shown.sentences)}
    return not any(sentence in text for sentence in spoken)
