"""What a claim in a recipe may not say, and what the error tells the person who said it."""

import pytest
from pydantic import ValidationError

from tilth.claim_spec import ClaimSpec, Expectation


def claim(*expect, **changes):
    arms = {"npo": {}, "ascent": {"stages.unlearned.unlearn.method": "gradient_ascent"}}
    return ClaimSpec.model_validate({"statement": "NPO keeps more.", "arms": arms, "seeds": 3, "expect": list(expect), **changes})


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"higher": "npo", "than": "ascent", "by": 0.1, "times": 2}, "not both"),
        ({"higher": "npo", "lower": "npo", "than": "ascent"}, "needs 'higher"),
        ({"higher": "npo"}, "than: ARM"),
        ({"higher": "npo", "than": "npo"}, "compared with itself"),
        ({"higher": "npo", "than": "ascent", "at_least": 3}, "not both"),
        ({"arm": "npo"}, "exactly one"),
        ({"arm": "npo", "at_least": 1, "at_most": 2}, "exactly one"),
        ({"at_least": 1}, "needs 'arm'"),
        ({"by": 0.5}, "needs 'higher"),
        ({"higher": "npo", "than": "ascnt"}, "Did you mean 'ascent'?"),
        ({"arm": "gold", "at_least": 1}, "Known: ascent, npo"),
        ({"higher": "npo", "than": "ascent", "margin": 0.5}, "margin"),
        ({"higher": "npo", "than": "ascent", "by": float("nan")}, "finite"),
        ({"higher": "npo", "than": "ascent", "times": -1}, "greater than 0"),
        ({"lower": "npo", "than": "ascent", "times": 30}, "asks for npo <= 30 x ascent"),
        ({"higher": "npo", "than": "ascent", "times": 0.03}, "nearly nothing"),
        ({"higher": "npo", "than": "ascent", "reported": True}, "demands something"),
        ({"higher": ["npo", "ascent"], "than": "ascent"}, "compared with itself"),
        ({"higher": ["npo"], "than": "ascnt"}, "Did you mean 'ascent'?"),
        ({"arm": ["npo", "ascnt"], "at_least": 1}, "Did you mean 'ascent'?"),
        ({"higher": ["npo"], "lower": ["npo"], "than": "ascent"}, "needs 'higher"),
        ({"arm": [], "at_least": 1}, "at least 1 item"),
        ({"arm": ["npo", "ascent"], "at_least": 1, "name": "utility"}, "cannot have one name"),
    ],
)
def test_a_wrong_expectation_says_what_is_wrong(wrong, told):
    with pytest.raises(ValidationError) as error:
        claim({"metric": "audit.utility", **wrong})
    assert told in str(error.value)


@pytest.mark.parametrize("changes", [{"arms": {}}, {"seeds": 0}, {"expect": []}, {"statement": ""}, {"verdict": "holds"}])
def test_a_claim_is_whole_and_holds_no_verdict(changes):
    with pytest.raises(ValidationError):
        claim({"metric": "audit.utility", "higher": "npo", "than": "ascent"}, **changes)


def test_a_list_of_arms_expects_the_same_of_each():
    made = claim(
        {"metric": "m", "minus": "n", "arm": ["npo", "ascent"], "at_least": 1}, {"metric": "m", "higher": "npo", "than": "ascent"}
    )
    assert [one.sentence() for one in made.expectations] == [
        "m less n of npo is at least 1", "m less n of ascent is at least 1", "m of npo is higher than of ascent",
    ]  # fmt: skip
    assert made.expectations[:2] == [Expectation(metric="m", minus="n", arm=arm, at_least=1) for arm in ("npo", "ascent")]


def test_an_arm_without_overrides_may_be_left_empty():
    assert claim({"metric": "m", "arm": "plain", "at_least": 1}, arms={"plain": None}).arms == {"plain": {}}


@pytest.mark.parametrize(
    "given, form, sentence",
    [
        ({"higher": "npo", "than": "ascent", "by": 0.05}, "difference", "m of npo is higher than of ascent by 0.05"),
        ({"lower": "npo", "than": "ascent"}, "difference", "m of npo is lower than of ascent"),
        ({"higher": "npo", "than": "ascent", "by": -0.02}, "difference", "m of npo is at most 0.02 lower than of ascent"),
        ({"lower": "npo", "than": "ascent", "by": -0.02}, "difference", "m of npo is at most 0.02 higher than of ascent"),
        ({"higher": "npo", "than": "ascent", "times": 3}, "ratio", "m of npo is at least 3 times that of ascent"),
        ({"lower": "npo", "than": "ascent", "times": 0.5}, "ratio", "m of npo is at most 0.5 times that of ascent"),
        ({"arm": "npo", "at_least": 0.9, "every_seed": True}, "level", "m of npo is at least 0.9, in every seed"),
        ({"arm": "npo", "at_most": 0}, "level", "m of npo is at most 0"),
        ({"arm": "npo", "at_most": 0, "name": "Forgotten"}, "level", "Forgotten"),
    ],
)
def test_an_expectation_reads_as_a_sentence(given, form, sentence):
    expectation = Expectation.model_validate({"metric": "m", **given})
    assert (expectation.form, expectation.sentence()) == (form, sentence)
