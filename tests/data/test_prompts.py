import json
from pathlib import Path

import pytest

from clipkit.data import prompts_of, read_classes, read_pairs, read_templates
from clipkit.errors import DataError


def test_imagenet_classes_and_templates_are_available_by_name() -> None:
    import open_clip

    classes = read_classes("imagenet")
    assert isinstance(classes, dict)
    assert len(classes) == 1000
    assert classes["n01440764"] == "tench"
    assert classes["n15075141"] == "toilet paper"
    assert list(classes.values()) == list(open_clip.IMAGENET_CLASSNAMES)
    templates = read_templates("imagenet")
    assert [t.replace("{c}", "cat") for t in templates] == [t("cat") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(read_templates("imagenet_simple")) == 7


def test_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\ufeffcat\n\n dog \n", encoding="utf-8")
    assert read_classes(str(tmp_path / "names.txt")) == ["cat", "dog"]
    (tmp_path / "names.json").write_text(json.dumps({"n1": ["cat", "kitten"], "n2": "dog"}))
    assert read_classes(str(tmp_path / "names.json")) == {"n1": ["cat", "kitten"], "n2": "dog"}
    (tmp_path / "t.json").write_text(json.dumps({"cat": ["a cat"]}))
    assert read_templates(str(tmp_path / "t.json")) == {"cat": ["a cat"]}
    (tmp_path / "l.json").write_text(json.dumps(["a {c}"]))
    assert read_templates(str(tmp_path / "l.json")) == read_classes(str(tmp_path / "l.json")) == ["a {c}"]


def test_a_file_has_priority_over_a_set_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("imagenet").write_text("cat\n")
    assert read_classes("imagenet") == ["cat"]
    assert read_templates("imagenet") == ["cat"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{", "is not valid JSON"),
        ("c.json", "[]", "a list of names"),
        ("c.json", '{"a": 1}', "a list of names"),
        ("c.json", '{"a": []}', "a list of names"),
        ("c.txt", "\n", "is empty"),
    ],
)
def test_invalid_class_files_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(str(tmp_path / name))


def test_invalid_templates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompts: imagenet, imagenet_simple"):
        read_templates("imgenet")
    (tmp_path / "t.json").write_text('{"cat": "a cat"}')
    with pytest.raises(DataError, match="a list of prompts"):
        read_templates(str(tmp_path / "t.json"))


def test_every_name_in_every_template() -> None:
    assert prompts_of("n1", ["cat", "kitten"], ["a {c}", "{} here"]) == ["a cat", "cat here", "a kitten", "kitten here"]
    assert prompts_of("n1", ["cat"], {"cat": ["it purrs"]}) == ["it purrs"]
    assert prompts_of("n1", ["cat"], {"n1": ["it purrs"]}) == ["it purrs"]
    # A brace that is no place for the name stays.
    assert prompts_of("x", ["{c}at"], ["a {c} {b}"]) == ["a {c}at {b}"]


def test_a_prompt_is_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for prompt in ("a picture of {c}", "{c}", "{}.", "a {c}, or a {c}? 100 % #1", "a picture of {c} " * 100):
        assert read_templates(prompt) == [prompt]
    Path("a {c}").write_text("a sketch of a {c}\n")
    assert read_templates("a {c}") == ["a sketch of a {c}"]
    for name in ("prompts_{c}.txt", "{c}.json"):
        with pytest.raises(DataError, match="file not found"):
            read_templates(name)


def test_a_prompt_after_a_question_mark(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes((shapes / "images/00.png").read_bytes())
    for typed in ("a picture of {c}", "a%20picture of%20{c}"):
        assert list(read_pairs(f"{tmp_path}?templates={typed}").captions) == ["a picture of cat"]
    assert list(read_pairs(f"{tmp_path}?templates=a {{c}} %26 a dog").captions) == ["a cat & a dog"]
