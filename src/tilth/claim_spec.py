"""What a recipe's `claim:` may say: arms, seeds, and what is expected of the measured numbers.

Notable: an expectation is written before anything is run and holds no numbers of a run; `tilth.claims.judge` compares.
Three forms, told apart by their keys: a difference (`by`), a ratio (`times`), a level (`at_least` or `at_most`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tilth.errors import nearest

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Arms = str | Annotated[list[str], Field(min_length=1)]


class Expectation(BaseModel):
    """One sentence about a metric ('stage.metric' of a run), in one of three forms.

    difference: `higher: A, than: B, by: x` (or `lower: A`): A is above (below) B by at least x, which defaults to 0;
      a negative x says 'at most this much worse'.
    ratio: `higher: A, than: B, times: x`: A >= x * B; `lower: A, than: B, times: x`: A <= x * B.
    level: `arm: A, at_least: x` or `arm: A, at_most: x`.
    higher, lower and arm may list arms, each of which is expected the same (`each`). minus: another metric of the same run, taken
    off first. every_seed: it must be so in each seed, instead of on average. reported: shown and not demanded.
    name: how people call it; made from the rest when left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    minus: str | None = None
    higher: _Arms | None = None
    lower: _Arms | None = None
    than: str | None = None
    by: _Finite | None = None
    times: Annotated[_Finite, Gt(0)] | None = None
    arm: _Arms | None = None
    at_least: _Finite | None = None
    at_most: _Finite | None = None
    every_seed: bool = False
    reported: bool = False
    name: str = ""

    @model_validator(mode="after")
    def _one_form(self) -> Expectation:
        if self._list is not None:
            if self.name:
                raise ValueError("a list of arms makes several expectations, which cannot have one name")
            try:
                self.each()
            except ValidationError as error:
                raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
            return self
        given = {
            key
            for key in ("higher", "lower", "than", "by", "times", "arm", "at_least", "at_most")
            if getattr(self, key) is not None
        }
        compared, levelled = given & {"higher", "lower", "than", "by", "times"}, given & {"arm", "at_least", "at_most"}
        if compared and levelled:
            raise ValueError(
                f"an expectation compares two arms or bounds one, not both: it has {_listed(compared)} and {_listed(levelled)}"
            )
        if levelled:
            if self.arm is None or (self.at_least is None) == (self.at_most is None):
                raise ValueError("a level needs 'arm' and exactly one of 'at_least' and 'at_most'")
            return self
        if (self.higher is None) == (self.lower is None) or self.than is None:
            raise ValueError("an expectation needs 'higher: ARM, than: ARM', 'lower: ARM, than: ARM', or 'arm: ARM' with a level")
        if self.subject == self.than:
            raise ValueError(f"arm '{self.than}' is compared with itself")
        if self.by is not None and self.times is not None:
            raise ValueError("say 'by' (a difference) or 'times' (a ratio), not both")
        if self.times is not None and (self.times < 0.5 if self.higher else self.times > 2):
            asked = ">=" if self.higher else "<="
            raise ValueError(
                f"'times: {self.times:g}' asks for {self.subject} {asked} {self.times:g} x {self.than}, which asks for nearly "
                f"nothing; for '{self.subject} is {self.times:g} times smaller' exchange the arms or write its inverse"
            )
        return self

    @property
    def _list(self) -> str | None:
        """Which of the keys that name arms lists several."""
        return next((key for key in ("higher", "lower", "arm") if isinstance(getattr(self, key), list)), None)

    def each(self) -> list[Expectation]:
        """One expectation per arm it is of."""
        if self._list is None:
            return [self]
        said = self.model_dump(exclude_unset=True)
        return [Expectation.model_validate({**said, self._list: arm}) for arm in said[self._list]]

    @property
    def form(self) -> Literal["difference", "ratio", "level"]:
        """Which of the three forms this is."""
        return "level" if self.arm is not None else "ratio" if self.times is not None else "difference"

    @property
    def subject(self) -> str:
        """The arm the sentence is about; of several the first."""
        return self.subjects[0]

    @property
    def subjects(self) -> tuple[str, ...]:
        """The arms it is expected of."""
        named = self.arm or self.higher or self.lower or ""
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def sign(self) -> int:
        """+1 when more is what is expected, -1 when less is."""
        return 1 if self.higher is not None or self.at_least is not None else -1

    @property
    def bound(self) -> float:
        """The number that is to be passed: `by`, `times`, `at_least` or `at_most`."""
        return next((value for value in (self.by, self.times, self.at_least, self.at_most) if value is not None), 0.0)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms named: the subjects and what they are compared with."""
        return self.subjects if self.than is None else (*self.subjects, self.than)

    def sentence(self) -> str:
        """The expectation in words."""
        if self.name:
            return self.name
        more = "higher" if self.sign > 0 else "lower"
        measured = self.metric if self.minus is None else f"{self.metric} less {self.minus}"
        if self.form == "level":
            words = f"{measured} of {self.subject} is {'at least' if self.sign > 0 else 'at most'} {self.bound:g}"
        elif self.form == "ratio":
            words = f"{measured} of {self.subject} is {'at least' if self.sign > 0 else 'at most'} {self.bound:g} times that of {self.than}"
        elif self.bound < 0:
            words = f"{measured} of {self.subject} is at most {-self.bound:g} {'lower' if self.sign > 0 else 'higher'} than of {self.than}"
        else:
            words = f"{measured} of {self.subject} is {more} than of {self.than}" + (f" by {self.bound:g}" if self.bound else "")
        return words + (", in every seed" if self.every_seed else "")


class ClaimSpec(BaseModel):
    """A claim: a statement, the arms that are run, and what is expected of their numbers.

    arms: name -> overrides of the recipe as dotted paths (`stages.unlearned.unlearn.method: gradient_ascent`).
    seeds: how many seeds (0, 1, ...) it takes to decide. tried: notes on what was tried before, kept in the evidence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    statement: Annotated[str, Field(min_length=1)]
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    seeds: Annotated[int, Ge(1)] = 3
    expect: Annotated[list[Expectation], Field(min_length=1)]
    tried: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _arms_without_overrides(cls, value: Any) -> Any:
        """`arms: {plain: }` in YAML gives null: an arm without overrides."""
        if isinstance(value, dict) and isinstance(value.get("arms"), dict):
            return {**value, "arms": {name: {} if overrides is None else overrides for name, overrides in value["arms"].items()}}
        return value

    @property
    def expectations(self) -> list[Expectation]:
        """What is expected, one by one."""
        return [one for expectation in self.expect for one in expectation.each()]

    @model_validator(mode="after")
    def _arms_exist(self) -> ClaimSpec:
        for number, expectation in enumerate(self.expect):
            for arm in expectation.arms:
                if arm not in self.arms:
                    raise ValueError(
                        f"expect[{number}] names the arm '{arm}', which does not exist. {nearest(arm, list(self.arms))}"
                    )
        if all(expectation.reported for expectation in self.expect):
            raise ValueError("every expectation is only reported: a claim demands something")
        return self


def _listed(keys: set[str]) -> str:
    return ", ".join(f"'{key}'" for key in sorted(keys))
