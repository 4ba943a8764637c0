"""The sentences of a phantom CT's report, in the words of two hospitals that share none: domains A and B.

    write(findings, random, domain="A", omitted=0.3, dup=0.5) -> (Line(text, section, region, finding), ...)

Structure by structure: what was found there, else, mostly, that it is normal; then the impression, the findings again in short.
Every sentence is one `Form` of a table with its slots filled, so elvis.data.phantoms.scan_parse reads all of them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elvis.data.phantoms.scan_anatomy import LOBES, PLEURAE, Finding


@dataclass(frozen=True)
class Line:
    """A sentence of the report. `finding`: its place in Scan.findings; None = a normal structure, or the summary of a normal scan."""

    text: str
    section: str  # findings | impression
    region: str  # one of STRUCTURES; "" = the whole scan
    finding: int | None = None


@dataclass(frozen=True)
class Form:
    """A sentence with the slots {structure}, {side} and, with a capital, {Structure}, {Side}. `denies`: kinds it says are not there."""

    text: str
    denies: tuple[str, ...] = ()

    def fill(self, structure: str) -> str:
        side = structure.split()[0] if structure else ""
        return self.text.format(structure=structure, side=side, Structure=structure.capitalize(), Side=side.capitalize())


@dataclass(frozen=True)
class Words:
    """How one hospital says things. `normal`: in the order of its reports."""

    found: Mapping[str, tuple[Form, ...]]
    two: tuple[Form, ...]  # nodules
    short: Mapping[str, Form]  # in the impression
    two_short: Form
    normal: Mapping[str, tuple[Form, ...]]
    nothing: tuple[Form, ...]  # the impression of a normal scan


def write(findings: Sequence[Finding], random: np.random.Generator, domain: str, omitted: float, dup: float) -> tuple[Line, ...]:
    """The lines of a report. omitted: share of the normal structures it does not mention; dup: of the normal sentences that take the first form."""
    words, lines = WORDS[domain], []
    draws = random.random((len(words.normal) + 1, 4)).tolist()
    for (structure, normal), (omit, again, word, other) in zip(words.normal.items(), draws, strict=False):
        here = [(place, finding) for place, finding in enumerate(findings) if finding.structure == structure]
        if not here and omit >= omitted:
            lines.append(Line(_pick(normal, 0.0 if again < dup else word).fill(structure), "findings", structure))
        for (place, finding), chance in zip(here, (word, other), strict=False):  # two at most, in the heart
            forms = words.found[finding.kind] if finding.count == 1 else words.two
            lines.append(Line(_pick(forms, chance).fill(structure), "findings", structure, place))
    for place, finding in enumerate(findings):
        form = words.short[finding.kind] if finding.count == 1 else words.two_short
        lines.append(Line(form.fill(finding.structure), "impression", finding.structure, place))
    if not findings:
        lines.append(Line(_pick(words.nothing, 0.0 if draws[-1][0] < dup else draws[-1][1]).fill(""), "impression", ""))
    return tuple(lines)


def _pick(forms: Sequence[Form], chance: float) -> Form:
    return forms[int(chance * len(forms))]


def _forms(*texts: str) -> tuple[Form, ...]:
    return tuple(Form(text) for text in texts)


# ------------------------------------------------------------------------------------------------------------ domain A

A = Words(
    found={
        "nodule": _forms("There is a nodule in the {structure}.", "A solid nodule is seen in the {structure}.", "The {structure} contains a nodule."),
        "consolidation": _forms(
            "There is consolidation in the {structure}.",
            "An area of consolidation is seen in the {structure}.",
            "The {structure} is consolidated.",
        ),
        "ground-glass opacity": _forms(
            "There is a ground-glass opacity in the {structure}.",
            "Ground-glass density is seen in the {structure}.",
            "The {structure} shows a ground-glass opacity.",
        ),
        "atelectasis": _forms(
            "There is a band of atelectasis in the {structure}.",
            "Linear atelectasis is seen in the {structure}.",
            "The {structure} is partly atelectatic.",
        ),
        "emphysema": _forms(
            "There is emphysema in the {structure}.",
            "Emphysematous change is seen in the {structure}.",
            "The {structure} is emphysematous.",
        ),
        "pleural effusion": _forms(
            "There is a {side} pleural effusion.",
            "Pleural fluid is seen on the {side}.",
            "The {side} pleural space contains fluid.",
        ),
        "bronchial wall thickening": _forms(
            "There is bronchial wall thickening.",
            "The walls of the main bronchi are thickened.",
            "Thickened bronchial walls are seen.",
        ),
        "cardiomegaly": _forms("The heart is enlarged.", "There is cardiomegaly.", "An enlarged heart is seen."),
        "coronary calcification": _forms(
            "The coronary arteries are calcified.",
            "There is calcification of the coronary arteries.",
            "Coronary artery calcification is seen.",
        ),
        "aortic calcification": _forms(
            "The wall of the aorta is calcified.",
            "There is calcification of the aortic wall.",
            "Aortic wall calcification is seen.",
        ),
        "lymphadenopathy": _forms(
            "There is an enlarged mediastinal lymph node.",
            "Mediastinal lymphadenopathy is seen.",
            "The mediastinum contains an enlarged lymph node.",
        ),
        "hiatal hernia": _forms("There is a hiatal hernia.", "A sliding hiatal hernia is seen.", "The esophageal hiatus shows a hernia."),
        "thyroid nodule": _forms(
            "There is a nodule in the thyroid gland.",
            "A hypodense thyroid nodule is seen.",
            "The thyroid gland contains a nodule.",
        ),
        "breast mass": _forms("There is a mass in the breast.", "A dense breast mass is seen.", "The breast contains a mass."),
        "liver lesion": _forms(
            "There is a hypodense lesion in the liver.", "A hypodense liver lesion is seen.", "The liver contains a hypodense lesion."
        ),
        "bone lesion": _forms(
            "There is a sclerotic bone lesion.", "A sclerotic lesion is seen in a vertebra.", "The spine contains a sclerotic lesion."
        ),
    },
    two=_forms(
        "There are two nodules in the {structure}.", "Two solid nodules are seen in the {structure}.", "The {structure} contains two nodules."
    ),
    short={
        "nodule": Form("Nodule in the {structure}."),
        "consolidation": Form("Consolidation in the {structure}."),
        "ground-glass opacity": Form("Ground-glass opacity in the {structure}."),
        "atelectasis": Form("Atelectasis in the {structure}."),
        "emphysema": Form("Emphysema in the {structure}."),
        "pleural effusion": Form("{Side} pleural effusion."),
        "bronchial wall thickening": Form("Bronchial wall thickening."),
        "cardiomegaly": Form("Cardiomegaly is present."),
        "coronary calcification": Form("Coronary calcification."),
        "aortic calcification": Form("Aortic calcification."),
        "lymphadenopathy": Form("Mediastinal lymphadenopathy."),
        "hiatal hernia": Form("Hiatal hernia."),
        "thyroid nodule": Form("Thyroid nodule."),
        "breast mass": Form("Breast mass."),
        "liver lesion": Form("Liver lesion."),
        "bone lesion": Form("Bone lesion."),
    },
    two_short=Form("Two nodules in the {structure}."),
    normal={
        "trachea": (
            *_forms("The trachea is patent.", "The trachea and main bronchi are open.", "The airways are of normal width."),
            Form("No thickening of the bronchial walls.", ("bronchial wall thickening",)),
        ),
        "thyroid": (
            *_forms("The thyroid gland is normal.", "The thyroid gland is unremarkable.", "The thyroid is homogeneous."),
            Form("No thyroid nodule.", ("thyroid nodule",)),
        ),
        "mediastinum": (
            Form("No enlarged mediastinal lymph nodes.", ("lymphadenopathy",)),
            *_forms("The mediastinum is unremarkable.", "The mediastinal fat is clear."),
            Form("No mediastinal lymphadenopathy.", ("lymphadenopathy",)),
        ),
        "esophagus": (
            *_forms("The esophagus is of normal calibre.", "The esophagus is unremarkable."),
            Form("No hiatal hernia.", ("hiatal hernia",)),
        ),
        "heart": (
            *_forms("The heart is of normal size.", "Heart size is normal.", "The heart is unremarkable."),
            Form("No cardiomegaly or coronary calcification.", ("cardiomegaly", "coronary calcification")),
        ),
        "aorta": (
            *_forms("The aorta is of normal calibre.", "The thoracic aorta is normal.", "The aorta is unremarkable."),
            Form("No calcification of the aorta.", ("aortic calcification",)),
        ),
        **dict.fromkeys(
            PLEURAE,
            (
                Form("No pleural effusion on the {side}.", ("pleural effusion",)),
                *_forms("The {side} pleural space is free of fluid.", "The {side} pleura is normal."),
                Form("There is no {side} pleural effusion.", ("pleural effusion",)),
            ),
        ),
        **dict.fromkeys(
            LOBES,
            (
                *_forms("The {structure} is clear.", "The {structure} is normal."),
                Form("No nodule or consolidation in the {structure}.", ("nodule", "consolidation")),
                Form("No ground-glass opacity in the {structure}.", ("ground-glass opacity",)),
            ),
        ),
        "abdomen": (
            *_forms("The upper abdominal organs are unremarkable.", "The upper abdomen is normal.", "The liver is homogeneous."),
            Form("No liver lesion.", ("liver lesion",)),
        ),
        "breast": (*_forms("The breasts are unremarkable.", "The breast tissue is normal."), Form("No breast mass.", ("breast mass",))),
        "bone": (
            Form("No destructive bone lesion.", ("bone lesion",)),
            *_forms("The bones are intact.", "The bones are unremarkable.", "The spine is normal."),
        ),
    },
    nothing=_forms("No acute finding in the chest.", "Normal chest CT."),
)

# ------------------------------------------------------------------------------------------------------------ domain B

B = Words(
    found={
        "nodule": _forms(
            "Rounded nodular lesion identified within the {structure}.",
            "{Structure}: solitary pulmonary nodule.",
            "A nodular focus was noted in the {structure}.",
        ),
        "consolidation": _forms(
            "Airspace disease with air bronchograms within the {structure}.",
            "{Structure}: dense consolidative opacity.",
            "Consolidative change was noted in the {structure}.",
        ),
        "ground-glass opacity": _forms(
            "Hazy attenuation of ground-glass type within the {structure}.",
            "{Structure}: patchy ground-glass attenuation.",
            "A ground-glass area was noted in the {structure}.",
        ),
        "atelectasis": _forms(
            "Plate-like collapse within the {structure}.",
            "{Structure}: subsegmental volume loss.",
            "Atelectatic bands were noted in the {structure}.",
        ),
        "emphysema": _forms(
            "Low-attenuation destruction of parenchyma within the {structure}.",
            "{Structure}: centrilobular emphysema.",
            "Emphysematous lucency was noted in the {structure}.",
        ),
        "pleural effusion": _forms(
            "Free fluid layering in the {side} hemithorax.",
            "{Side} pleura: dependent effusion.",
            "A {side}-sided effusion was noted.",
        ),
        "bronchial wall thickening": _forms(
            "Peribronchial cuffing identified centrally.",
            "Central airways: mural thickening.",
            "Bronchial mural thickening was noted.",
        ),
        "cardiomegaly": _forms("Cardiac silhouette larger than expected.", "Heart: enlarged chambers.", "Cardiac enlargement was noted."),
        "coronary calcification": _forms(
            "Calcified plaque along the coronary vessels.",
            "Heart: coronary calcium.",
            "Coronary arterial calcium was noted.",
        ),
        "aortic calcification": _forms(
            "Calcified plaque along the aortic wall.",
            "Aorta: mural calcium.",
            "Atheromatous calcium of the aorta was noted.",
        ),
        "lymphadenopathy": _forms(
            "Pathologically enlarged node between the great vessels.",
            "Mediastinum: nodal enlargement.",
            "An enlarged mediastinal node was noted.",
        ),
        "hiatal hernia": _forms(
            "Herniation of gastric fundus and fat through the hiatus.",
            "Esophagus: hiatus hernia.",
            "A hernia of the hiatus was noted.",
        ),
        "thyroid nodule": _forms(
            "Low-density nodule within the thyroid.",
            "Thyroid: focal hypodensity.",
            "A hypoattenuating focus of the thyroid was noted.",
        ),
        "breast mass": _forms(
            "Soft-tissue mass within the breast.",
            "Breast: focal soft-tissue density.",
            "A density of the breast was noted.",
        ),
        "liver lesion": _forms(
            "Hypoattenuating focus within the liver.",
            "Liver: focal hypodensity.",
            "A hepatic hypodensity was noted.",
        ),
        "bone lesion": _forms(
            "Osteoblastic focus within a vertebral body.",
            "Skeleton: blastic vertebral focus.",
            "A blastic focus of the spine was noted.",
        ),
    },
    two=_forms(
        "A pair of nodular lesions identified within the {structure}.",
        "{Structure}: paired pulmonary nodules.",
        "Paired nodular foci were noted in the {structure}.",
    ),
    short={
        "nodule": Form("Pulmonary nodule, {structure}."),
        "consolidation": Form("Airspace disease, {structure}."),
        "ground-glass opacity": Form("Ground-glass change, {structure}."),
        "atelectasis": Form("Volume loss, {structure}."),
        "emphysema": Form("Emphysematous disease, {structure}."),
        "pleural effusion": Form("Pleural fluid collection, {side} side."),
        "bronchial wall thickening": Form("Central airway disease."),
        "cardiomegaly": Form("Enlarged cardiac silhouette."),
        "coronary calcification": Form("Coronary artery disease."),
        "aortic calcification": Form("Aortic atheroma."),
        "lymphadenopathy": Form("Enlarged nodes of the mediastinum."),
        "hiatal hernia": Form("Hernia of the hiatus."),
        "thyroid nodule": Form("Nodular thyroid."),
        "breast mass": Form("Focal breast density."),
        "liver lesion": Form("Focal hepatic hypodensity."),
        "bone lesion": Form("Blastic skeletal disease."),
    },
    two_short=Form("Paired pulmonary nodules, {structure}."),
    normal={
        "heart": (
            *_forms("Cardiac chambers within normal limits.", "Heart: unremarkable.", "Cardiac dimensions are not increased."),
            Form("Absence of cardiac enlargement and coronary calcium.", ("cardiomegaly", "coronary calcification")),
        ),
        "aorta": (
            *_forms("Aortic diameter within normal limits.", "Aorta: unremarkable."),
            Form("Absence of atheromatous calcium of the aorta.", ("aortic calcification",)),
        ),
        "mediastinum": (
            Form("Absence of pathological mediastinal nodes.", ("lymphadenopathy",)),
            *_forms("Mediastinum: unremarkable.", "Mediastinal compartments within normal limits."),
        ),
        "esophagus": (
            *_forms("Esophageal course and wall within normal limits.", "Esophagus: unremarkable."),
            Form("Absence of herniation through the hiatus.", ("hiatal hernia",)),
        ),
        "thyroid": (
            *_forms("Thyroid lobes within normal limits.", "Thyroid: unremarkable."),
            Form("Absence of a thyroid focus.", ("thyroid nodule",)),
        ),
        "trachea": (
            *_forms("Tracheobronchial tree within normal limits.", "Central airways: unremarkable."),
            Form("Absence of mural thickening of the bronchi.", ("bronchial wall thickening",)),
        ),
        **dict.fromkeys(
            LOBES,
            (
                *_forms("Aeration of the {structure} within normal limits.", "{Structure}: unremarkable."),
                Form("Absence of nodular or consolidative change in the {structure}.", ("nodule", "consolidation")),
                Form("Absence of hazy attenuation in the {structure}.", ("ground-glass opacity",)),
            ),
        ),
        **dict.fromkeys(
            PLEURAE,
            (
                Form("Absence of fluid in the {side} hemithorax.", ("pleural effusion",)),
                *_forms("{Side} pleura: unremarkable.", "{Side} costophrenic recess within normal limits."),
            ),
        ),
        "breast": (
            *_forms("Breast parenchyma within normal limits.", "Breast: unremarkable."),
            Form("Absence of a breast density.", ("breast mass",)),
        ),
        "bone": (
            *_forms("Osseous structures within normal limits.", "Skeleton: unremarkable."),
            Form("Absence of a blastic focus.", ("bone lesion",)),
        ),
        "abdomen": (
            *_forms("Visualised upper abdomen within normal limits.", "Liver: unremarkable."),
            Form("Absence of a hepatic focus.", ("liver lesion",)),
        ),
    },
    nothing=_forms("Study within normal limits.", "Thorax without pathology."),
)

WORDS: Mapping[str, Words] = {"A": A, "B": B}
