"""Loading a constitution: what makes it unusable is told with file and line."""

from __future__ import annotations

import copy
import pickle

import pytest
import yaml

from cachewarden.errors import ConstitutionError
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.policy.constitution import REQUIRED_CHECKS, load_constitution, parse_constitution
from tests.unit.policy.builders import SHIPPED, SHIPPED_PATH


def text(*principles, constitutional_hash=CONSTITUTIONAL_HASH):
    return yaml.safe_dump(
        {"constitutional_hash": constitutional_hash, "version": "1", "title": "test", "principles": list(principles)},
        sort_keys=False,
    )


def principle(name="rule", check="data_sovereignty", expression="gain > 0.0", **fields):
    return {
        "id": name, "title": "a rule", "rationale": "because", "severity": "high", "check": check,
        "expression": expression, "message": "it is {gain:.2f}", **fields,
    }  # fmt: skip


def four(**first):
    """The least lawful constitution, with the first principle changed."""
    rest = [principle(f"rule-{check.value.replace('_', '-')}", check.value) for check in REQUIRED_CHECKS[1:]]
    return [principle(**first), *rest]


def line_of(source, needle, nth=1):
    return [i for i, line in enumerate(source.splitlines(), start=1) if needle in line][nth - 1]


def refused(source):
    with pytest.raises(ConstitutionError) as caught:
        parse_constitution(source, "mine.yaml")
    assert caught.value.path == "mine.yaml"
    return caught.value


def test_the_shipped_constitution_covers_the_four_checks_and_safety():
    assert set(SHIPPED.checks) == {*(c.value for c in REQUIRED_CHECKS), "safety"}
    assert len(SHIPPED.principles) >= 12


def test_the_least_constitution_has_one_principle_for_each_of_the_four_checks():
    assert len(parse_constitution(text(*four())).principles) == 4


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("gain >", "not valid CEL"),
        ("gane > 0.0", "`gane` is not a fact"),
        ("mode == 'auto' || gane > 0.0", "`gane` is not a fact"),
        ("gain", "must give true or false"),
        ("gain + 1 > 0.0", "cannot be evaluated on the example facts"),
        ("shout(service)", "`shout` is not a function"),
        ("mode == 'auto' || shout(service)", "`shout` is not a function"),
        ("1 < 2", "looks at no fact"),
    ],
)
def test_an_expression_that_cannot_judge_is_refused_with_its_line(expression, said):
    source = text(*four(expression=expression))
    error = refused(source)
    assert said in str(error)
    assert error.line == line_of(source, "expression:")
    assert f"mine.yaml:{error.line}: " in str(error)


def test_a_variable_of_a_macro_is_no_unknown_fact():
    assert parse_constitution(text(*four(expression="namespaces.all(prefix, prefix != '')")))


def test_the_column_of_a_syntax_error_is_told():
    assert "line 1 column" in str(refused(text(*four(expression="gain > > 1"))))


@pytest.mark.parametrize(
    "message", ["it is {gane}", "it is {service.__class__}", "it is {0}", "it is {", "{service:.2f}"]
)
def test_a_message_that_cannot_be_filled_in_is_refused_with_its_line(message):
    source = text(*four(message=message))
    assert refused(source).line == line_of(source, "message:")


def test_a_doubled_id_is_refused_where_it_stands_the_second_time():
    principles = four()
    principles[2]["id"] = principles[0]["id"]
    source = text(*principles)
    error = refused(source)
    assert error.line == line_of(source, "- id: rule", 3)
    assert "stands twice, first in line" in str(error)


@pytest.mark.parametrize("missing", range(4))
def test_a_constitution_without_one_of_the_four_checks_is_refused(missing):
    principles = four()
    check = principles.pop(missing)["check"]
    assert f"`{check}`" in str(refused(text(*principles)))


def test_a_scope_that_nothing_falls_into_is_refused():
    error = refused(text(*four(applies_to=["memroy"])))
    assert "`memroy`" in str(error)
    assert "keep_hot_set" in str(error)


def test_another_hash_is_refused():
    source = text(*four(), constitutional_hash="0" * 16)
    error = refused(source)
    assert CONSTITUTIONAL_HASH in str(error)
    assert error.line == 1


@pytest.mark.parametrize("source", ["", "principles: [", "[]", "a: 1\na: 2\n", text()])
def test_what_is_no_constitution_is_refused(source):
    assert refused(source)


@pytest.mark.parametrize(
    "change", [{"severity": "grave"}, {"check": "taste"}, {"id": "Not An Id"}, {"expresion": "gain > 0.0"}]
)
def test_a_typo_in_a_field_is_refused(change):
    first = four()[0] | change
    assert refused(text(first, *four()[1:])).line is not None


def test_a_missing_file_says_which(tmp_path):
    with pytest.raises(ConstitutionError, match=r"none\.yaml: cannot be read"):
        load_constitution(tmp_path / "none.yaml")


def test_the_digest_names_the_content_and_not_its_layout():
    source = SHIPPED_PATH.read_text()
    assert parse_constitution("# a comment\n\n" + source).digest == SHIPPED.digest
    assert parse_constitution(source.replace('version: "1.0.0"', 'version: "1.0.1"')).digest != SHIPPED.digest


def test_a_constitution_survives_pickling_and_copying():
    for again in (pickle.loads(pickle.dumps(SHIPPED)), copy.deepcopy(SHIPPED)):
        assert again == SHIPPED
        assert again.words == SHIPPED.words
        assert len(again.programs) == len(SHIPPED.principles)
