import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from elvis.data.phantoms.knobs import make_knobs
from elvis.data.phantoms.study import PhantomImage
from elvis.data.reports import join_lines, normalise, parse, sentences, text_hash
from tests import layouts

RULE = "_" * 78


def texts(report):
    return [s.text for s in sentences(parse(report).sections)]


def split(text):
    return [s.text for s in sentences({"findings": text})]


# --------------------------------------------------------------------------------------------------------- sections


def test_a_mimic_report_gives_its_sections():
    report = parse(layouts.REPORT.format(number=7))
    assert report.source == "header"
    assert report.sections == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___F with cough // eval for pneumonia",
        "comparison": "Chest radiograph ___",
        "findings": "The lungs are clear. There is a 1.5 cm nodule in the left upper lobe, near C7. No pneumothorax.",
        "impression": "1. No acute process.\n2. Small nodule in study 7.",
    }


@pytest.mark.parametrize(
    ("header", "section"),
    [
        (" FINDINGS:", "findings"),
        ("Findings:", "findings"),
        ("FINDINGS AND IMPRESSION:", "findings"),
        ("CONCLUSION:", "impression"),
        ("IMPRESION:", "impression"),
        ("FIDINGS :", "findings"),
        ("REASON FOR EXAM:", "indication"),
        ("NDICATION:", "indication"),
        ("COMPARISONS:", "comparison"),
        ("TECHNIQUE:", "technique"),
        ("IMRPESSION:", "impression"),
        ("COMPARISION:", "comparison"),
        ("                    FINDINGS:", "findings"),
        ("Clinical History:", "indication"),
        ("PRELIMINARY IMPRESSION:", "impression"),
        ("IMPRESSION #2:", "impression"),
        ("COMPARISON STUDY FROM ___:", "comparison"),
        ("PAST MEDICAL HISTORY:", "indication"),
        ("FINDINGS\n", "findings"),
        ("  IMPRESSION  \n", "impression"),
    ],
)
def test_headers_are_known_by_several_names_and_misspelt(header, section):
    assert section in parse(f"{header} Something is said here.\n").sections


VIEWS = [" PORTABLE AP CHEST:", " CHEST, TWO VIEWS:", " PA AND LATERAL VIEWS OF THE CHEST:", "CHEST, 2 VIEWS, ___:", " AP CHEST, 5:43 A.M., ___:"]


@pytest.mark.parametrize("header", VIEWS)
def test_a_header_that_names_the_view_is_followed_by_findings(header):
    report = parse(f" FINAL REPORT\n INDICATION: Cough.\n{header}  The lungs are clear.\n")
    assert (report.source, report.sections["findings"]) == ("header", "The lungs are clear.")


def test_the_last_occurrence_of_a_section_wins_unless_it_is_empty():
    report = parse(" FINDINGS: Old text here.\n FINDINGS: New text here.\n IMPRESSION: Said once.\n IMPRESSION:\n")
    assert report.sections == {"findings": "New text here.", "impression": "Said once."}


def test_an_empty_section_is_dropped():
    assert parse(" FINDINGS:\n\n IMPRESSION: No change.\n").sections == {"impression": "No change."}


def test_the_organs_of_a_structured_report_stay_in_its_findings():
    report = parse(" FINDINGS:\n LUNGS: Clear on both sides.\n HEART: Not enlarged.\n IMPRESSION: Normal chest.\n NOTE: Dictated by phone.\n")
    assert report.sections["findings"] == "LUNGS: Clear on both sides. HEART: Not enlarged."
    assert report.sections["impression"] == "Normal chest."


def test_a_place_with_a_number_is_no_header():
    report = parse(" FINDINGS:\n L4-L5: Disc bulge.\n C7: Old fracture.\n IMPRESSION: Degenerative.\n")
    assert report.sections["findings"] == "L4-L5: Disc bulge. C7: Old fracture."


def test_findings_of_an_organ_do_not_begin_the_findings_anew():
    assert texts("FINDINGS:\n LUNG FINDINGS: Both clear.\n CARDIAC FINDINGS: Not enlarged.\n") == [
        "LUNG FINDINGS: Both clear.",
        "CARDIAC FINDINGS: Not enlarged.",
    ]


def test_a_time_or_a_ratio_is_no_header():
    assert texts("IMPRESSION: Called at 3:45 p.m. by phone. Ratio is 12:33 now.") == ["Called at 3:45 p.m. by phone.", "Ratio is 12:33 now."]


def test_a_report_in_capitals_keeps_its_sentences():
    report = parse("FINDINGS: THE LUNGS ARE CLEAR. NO EFFUSION. IMPRESSION: NORMAL CHEST. TUBE ENDS AT 4 CM. HEART NORMAL.")
    assert report.sections["findings"] == "THE LUNGS ARE CLEAR. NO EFFUSION."
    assert [s.text for s in sentences(report.sections, "impression")] == ["NORMAL CHEST.", "TUBE ENDS AT 4 CM.", "HEART NORMAL."]


def test_two_headers_on_one_line_are_two_sections():
    assert parse("FINDINGS: Lungs clear IMPRESSION: Normal chest.").sections == {"findings": "Lungs clear", "impression": "Normal chest."}
    assert parse("Findings: Lungs clear. Impression: Normal chest.").sections == {"findings": "Lungs clear.", "impression": "Normal chest."}


def test_a_word_with_a_colon_inside_a_sentence_is_no_header():
    report = parse("Two findings: a nodule and a mass, at 10:20 AM. Clinical details: cough.")
    assert report.source == "full"


def test_without_findings_and_impression_the_last_paragraph_counts():
    report = parse(" FINAL REPORT\n INDICATION:  Cough.\n\n AP view of the chest.  The lungs\n are clear.\n")
    assert report.source == "last_paragraph"
    assert report.sections == {"indication": "Cough.", "last_paragraph": "AP view of the chest. The lungs are clear."}
    assert [s.section for s in sentences(report.sections)] == ["last_paragraph"] * 2


def test_a_title_under_final_report_is_not_text():
    report = parse("           FINAL REPORT\n CHEST, SINGLE AP VIEW\n\n The lungs are clear.\n")
    assert (report.source, report.sections) == ("last_paragraph", {"last_paragraph": "The lungs are clear."})


def test_a_text_without_headers_is_findings_in_full():
    report = parse("Hazy opacity in the right base.\nNo effusion is seen.")
    assert (report.source, report.sections) == ("full", {"findings": "Hazy opacity in the right base. No effusion is seen."})


def test_only_what_stands_under_the_rule_of_an_addendum_counts():
    rule = "_" * 78
    assert texts(f" ADDENDUM  Called to the ward.\n {rule}\n FINAL REPORT\n FINDINGS: The lungs are clear.\n") == ["The lungs are clear."]
    assert texts(f" FINDINGS: The lungs are clear.\n {rule}\n") == ["The lungs are clear."]


def test_a_wet_read_stands_above_the_final_report_with_and_without_a_rule():
    wet, final = " WET READ: ___ ___ 9:12 PM\n  Large effusion seen.\n", "            FINAL REPORT\n FINDINGS: No effusion at all.\n"
    assert texts(wet + f" {RULE}\n" + final) == ["No effusion at all."]
    assert texts(wet + final) == ["No effusion at all."]


def test_a_signature_under_the_rule_does_not_hide_the_report():
    assert texts(f" FINDINGS: The lungs are clear.\n {RULE}\n Signed by Dr. ___ today.\n") == ["The lungs are clear."]


def test_an_addendum_does_not_hide_a_final_report_without_headers():
    report = parse(f" ADDENDUM:\n IMPRESSION: Called to the ward.\n {RULE}\n FINAL REPORT\n CHEST, AP\n\n The lungs are clear.\n")
    assert (report.source, report.sections) == ("last_paragraph", {"last_paragraph": "The lungs are clear."})


def test_what_stands_before_the_first_header_counts_where_nothing_else_is_said():
    assert texts("The lungs are clear.\n COMPARISON: None.\n") == ["The lungs are clear."]
    assert texts(" CHEST, PA\n COMPARISON: None.\n") == []


def test_a_banner_with_text_on_its_line_is_text():
    assert texts("FINAL REPORT The lungs are clear.") == ["FINAL REPORT The lungs are clear."]


def test_an_indication_alone_gives_no_sentence():
    assert texts(" FINAL REPORT\n INDICATION: Patient with cough.\n") == []


@pytest.mark.parametrize("text", ["", " \n \n", "___"])
def test_nothing_gives_nothing(text):
    assert texts(text) == []


def test_windows_line_ends_and_replacement_characters_are_understood():
    assert texts("FINDINGS:\r\n\r\nSeen by Dr. \ufffd at\r\nnoon today.\r\n") == ["Seen by Dr. ___ at noon today."]
    assert texts("FINDINGS: Seen on\n" + "\ufffd" * 30 + "\nby phone.") == ["Seen on ___ by phone."]


def test_printed_sections_are_read_back():
    for index in range(30):
        sections = parse(PhantomImage(3, "test", index, 64, make_knobs(2)).report().raw).sections
        assert parse("\n".join(f"{name.upper()}:\n{text}" for name, text in sections.items())).sections == sections


# -------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A 1.5 cm nodule is at C7. The heart is big.", ["A 1.5 cm nodule is at C7.", "The heart is big."]),
        ("Told to Dr. Smith by Dr. J. Doe, e.g. by phone.", ["Told to Dr. Smith by Dr. J. Doe, e.g. by phone."]),
        ("Seen at 5:32 p.m. by phone. No change.", ["Seen at 5:32 p.m. by phone.", "No change."]),
        ("Taken at 5 a.m. The tube is high.", ["Taken at 5 a.m.", "The tube is high."]),
        ("no pneumothorax. heart is normal.", ["no pneumothorax.", "heart is normal."]),
        ("1. Tube in place. 2. No effusion.", ["Tube in place.", "No effusion."]),
        ("1. Tube in place 2. No effusion", ["Tube in place", "No effusion"]),
        ("1) tube in place. 2) no effusion.", ["tube in place.", "no effusion."]),
        ("Level is T12. 2 cm mass.", ["Level is T12.", "2 cm mass."]),
        ("Rib 3. No fracture.", ["Rib 3.", "No fracture."]),
        ("Clear lungs.There is no effusion.", ["Clear lungs.", "There is no effusion."]),
        ("Is it edema? Probably it is!", ["Is it edema?", "Probably it is!"]),
        ("Compared to ___. ___ has improved.", ["Compared to ___.", "___ has improved."]),
        ("Normal. ___ ___. Heart size normal..", ["Heart size normal.."]),
        ('It is "clear." Nothing else.', ['It is "clear."', "Nothing else."]),
        ("A 5 mm. nodule is seen. It measures 5 mm. No effusion.", ["A 5 mm. nodule is seen.", "It measures 5 mm.", "No effusion."]),
        ("Opacity... may be atelectasis... The heart is big.", ["Opacity... may be atelectasis...", "The heart is big."]),
        ("Seen on 1.2.2012 and on Jan. 5 again. See image No. 3 there.", ["Seen on 1.2.2012 and on Jan. 5 again.", "See image No. 3 there."]),
        ("1. 8 mm nodule. 2. 1.4 cm mass. 3. ___ is stable.", ["8 mm nodule.", "1.4 cm mass.", "___ is stable."]),
        ("1.No acute disease. 2.Old fracture.", ["No acute disease.", "Old fracture."]),
        ("lungs are clear . heart is normal . . . no effusion .", ["lungs are clear .", "heart is normal .", "no effusion ."]),
        ("nodul 3 . 1 x 2 . 3 cm basal .", ["nodul 3 . 1 x 2 . 3 cm basal ."]),
        ("sin hallazgos patológicos. corazón normal", ["sin hallazgos patológicos.", "corazón normal"]),
        ("sin hallazg patolog cardiomegali", ["sin hallazg patolog cardiomegali"]),
        ("XXXX XXXX. Clear x-XXXX.The heart XXXX. Seen at XXXX p.m. XXXX.", ["Clear x-XXXX.", "The heart XXXX.", "Seen at XXXX p.m. XXXX."]),
        ("Lobes (RUL, etc.) are clear (see Dr. Doe). 12 33.", ["Lobes (RUL, etc.) are clear (see Dr. Doe)."]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
    assert split(text) == expected


def test_a_blank_line_or_a_list_item_ends_a_sentence_but_a_line_break_does_not():
    report = "FINDINGS: The heart\nis normal\n\nNo effusion\n- Left base clear\n- Right base clear\n"
    assert texts(report) == ["The heart is normal", "No effusion", "Left base clear", "Right base clear"]


def test_a_number_wrapped_to_the_next_line_is_not_a_list_number():
    assert texts("FINDINGS: Callus at rib\n 3. No new fracture.\n") == ["Callus at rib 3.", "No new fracture."]
    assert texts("IMPRESSION:\n 1. Callus at the ribs\n 2. No new fracture\n") == ["Callus at the ribs", "No new fracture"]


def test_offsets_point_at_the_text():
    sections = parse(layouts.REPORT.format(number=7)).sections
    found = sentences(sections)
    assert len(found) == 5
    assert all(sections[s.section][s.start : s.end] == s.text for s in found)
    assert [s.section for s in found] == ["findings"] * 3 + ["impression"] * 2


def test_only_the_sections_asked_for_are_used():
    sections = {"findings": "Clear lungs.", "impression": "Normal chest.", "comparison": "None at all."}
    assert [s.text for s in sentences(sections, use=("impression",))] == ["Normal chest."]


def test_which_text_to_learn_from_is_a_choice():
    both, neither = {"findings": "Clear lungs.", "impression": "Normal chest."}, {"comparison": "None at all.", "last_paragraph": "Big heart."}
    only = {"impression": "Normal chest."}
    assert [s.section for s in sentences(both)] == ["findings", "impression"]
    assert [s.section for s in sentences(both, ("impression", "findings"))] == ["impression", "findings"]
    assert [s.section for s in sentences(both, "findings")] == ["findings"]
    assert [s.section for s in sentences(neither)] == ["last_paragraph"]
    assert sentences(neither, otherwise=()) == ()
    assert sentences(only, "findings") == ()
    assert [s.section for s in sentences(only, "findings", otherwise=("impression", "last_paragraph"))] == ["impression"]


def test_one_word_is_a_sentence_where_that_is_wanted():
    sections = {"findings": "cardiomegali . . sin derram . 1. XXXX."}
    assert [s.text for s in sentences(sections)] == ["sin derram ."]
    assert [s.text for s in sentences(sections, min_words=1)] == ["cardiomegali .", "sin derram ."]


def test_equal_sentences_share_their_text():
    first, second = (sentences({"findings": f"No effusion is seen. {more}"})[0] for more in ("One.", "Two."))
    assert first.text is second.text


def test_every_letter_of_a_section_is_in_a_sentence_unless_it_is_a_number_or_a_stub():
    section = "1. Tube in place 2. No effusion at C7. Dr. ___ knows. The end is near"
    assert "".join(split(section)).replace(" ", "") == section.replace("1. ", "").replace("2. ", "").replace(" ", "")


# --------------------------------------------------------------------------------------------------------- equality


def test_texts_that_differ_in_case_blanks_and_punctuation_are_equal():
    assert normalise("  No  Pneumothorax,\nno effusion. ") == "no pneumothorax no effusion"
    assert text_hash("No pneumothorax.") == text_hash("no  pneumothorax")


def test_texts_that_say_something_else_are_not():
    others = ["small left effusion", "small right effusion", "left effusion", "1.5 cm", "15 cm", "15. cm"]
    assert len({text_hash(text) for text in others}) == 5  # "15 cm" and "15. cm" are the same


def test_the_hash_is_a_signed_64_bit_number_that_never_changes():
    assert text_hash("No pneumothorax.") == -4889545636787558990


# ------------------------------------------------------------------------------------------------------- any string

ANY = st.text(st.characters(exclude_categories=()), max_size=200)
PIECES = ["FINDINGS:", " IMPRESSION: ", "Impression:", "CHEST, AP:", "FINAL REPORT\n", RULE, "___", "the lungs are clear", "A", "aB", "Dr.", "5 p.m."]
PIECES += ["\n", "\n \n", "\r\n", " ", "\t", "1. ", "2) ", "- ", ".", "...", '."', ":", "\ufffd", "\0", "\ud800", "\u202e", "\U0001f600", "٣. ", "²."]


@settings(max_examples=300, deadline=None)
@given(ANY | st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@example("")
@example(RULE)
def test_any_string_is_parsed_and_its_sentences_are_where_they_say(text):
    report = parse(text)
    assert report.source in ("header", "last_paragraph", "full")
    assert all(report.sections.values())
    for sections in (report.sections, {"findings": text}):
        end = -1
        for s in sentences(sections):
            assert sections[s.section][s.start : s.end] == s.text == s.text.strip()
            assert "\n" not in s.text
            if s.section == "findings":
                assert s.start >= end
                end = s.end
    assert parse(text) == report
    text_hash(text)


@given(st.lists(st.sampled_from(["lungs are", "clear.", "1.5 cm", "\n", " "])).map("".join))
def test_joined_lines_stay_joined(text):
    joined = join_lines(text)
    assert join_lines(joined.replace("\n", "\n\n")) == joined
    assert joined.split() == text.split()


NASTY = ["FINDINGS: a b\n", "FINDINGS: a b ", "CAPITALS WITHOUT COLON ", "FINAL REPORT\n", f"{RULE}\n", f"{RULE}\na b\n", f"{RULE}\nFINDINGS: a.\n"]
NASTY += [" :", "A ", "A: ", "A:", "a", "_a", "___", "1. ", "1. A ", "- ", "Dr. ", "a... ", "Ab.Cd", ".", ". ", '."', ')."', " ", "\n \n", "\0"]
LENGTH = 1000


@pytest.mark.parametrize("piece", NASTY)
def test_the_time_is_proportional_to_the_length(piece):
    def seconds(count):
        begin = time.process_time()
        for sections in (parse(piece * count).sections, {"findings": piece * count}):
            sentences(sections)
        return time.process_time() - begin

    short = max(min(seconds(LENGTH) for _ in range(3)), 1e-4)
    assert min(seconds(8 * LENGTH) for _ in range(2)) < 30 * short  # 8 if proportional, 64 if quadratic
