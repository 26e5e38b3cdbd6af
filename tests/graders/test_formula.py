import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentrft.core.errors import ConfigError, GraderError
from agentrft.graders.formula import MAX_CHARACTERS, parse_formula

SCORES = {"a": 0.5, "b": 2.0, "recall": 0.25, "precision": 0.75}


def value(text: str) -> float:
    return parse_formula(text, SCORES, "here").value(SCORES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        ("a", 0.5),
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("7 - 2 - 1", 4.0),
        ("8 / 4 / 2", 1.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("2 ^ -1", 0.5),
        ("--a", 0.5),
        ("3 - -a", 3.5),
        ("1e-9 + 2.5E+1", 25.000000001),
        (".5 + 5.", 5.5),
        ("min(a, b, 1)", 0.5),
        ("max(a)", 0.5),
        ("abs(-3) + floor(1.7) + ceil(1.2)", 6.0),
        ("exp(0) + sqrt(4) + log(1)", 3.0),
        ("2 * precision * recall / max(precision + recall, 1e-9)", 0.375),
        ("a\n+\tb ", 2.5),
    ],
)
def test_formulas_of_the_contract_have_their_values(text: str, expected: float) -> None:
    assert value(text) == expected


@st.composite
def twins(draw: st.DrawFn, depth: int = 4) -> tuple[str, str]:
    """The same formula in our language and in Python's."""
    kind = draw(
        st.sampled_from(
            ["number", "name"] if depth == 0 else ["number", "name", "binary", "minus", "call"]
        )
    )
    inner = twins(depth=depth - 1)
    if kind == "number":
        number = repr(draw(st.floats(min_value=0.0, max_value=1e6, allow_subnormal=False)))
        return number, number
    if kind == "name":
        name = draw(st.sampled_from(sorted(SCORES)))
        return name, f"scores[{name!r}]"
    if kind == "minus":
        ours, python = draw(inner)
        return f"-({ours})", f"-({python})"
    if kind == "call":
        function = draw(
            st.sampled_from(["min", "max", "abs", "floor", "ceil", "exp", "sqrt", "log"])
        )
        count = draw(st.integers(1, 3)) if function in ("min", "max") else 1
        parts = [draw(inner) for _ in range(count)]
        ours = ", ".join(part[0] for part in parts)
        python = ", ".join(part[1] for part in parts)
        return (
            f"{function}({ours})",
            f"{function}([{python}])" if count > 1 else f"{function}1({python})",
        )
    left, right = draw(inner), draw(inner)
    sign = draw(st.sampled_from("+-*/^"))
    if sign == "^":
        return f"({left[0]}) ^ ({right[0]})", f"pow({left[1]}, {right[1]})"
    brackets = draw(st.booleans())
    ours = f"({left[0]} {sign} {right[0]})" if brackets else f"{left[0]} {sign} {right[0]}"
    python = f"({left[1]} {sign} {right[1]})" if brackets else f"{left[1]} {sign} {right[1]}"
    return ours, python


PYTHON = {
    "scores": SCORES,
    "min": min,
    "max": max,
    "pow": math.pow,
    "min1": lambda x: x,
    "max1": lambda x: x,
    "abs1": abs,
    "floor1": lambda x: float(math.floor(x)),
    "ceil1": lambda x: float(math.ceil(x)),
    "exp1": math.exp,
    "sqrt1": math.sqrt,
    "log1": math.log,
}


def outcome(text: str) -> float | str:
    """The value, or the error's text."""
    try:
        return value(text)
    except (ConfigError, GraderError) as error:
        return str(error)


@given(twins())
def test_random_formulas_agree_with_python_floats(pair: tuple[str, str]) -> None:
    ours, python = pair
    assume(len(ours) <= MAX_CHARACTERS)
    try:
        expected = eval(python, dict(PYTHON))
    except (ArithmeticError, ValueError):
        expected = math.nan
    result = outcome(ours)
    if not math.isfinite(expected):
        assert isinstance(result, str)
    elif isinstance(result, str):
        # Stricter than floats: an infinity on the way counts even if it cancels, as in 1/inf.
        assert "the result is not a finite number" in result
    else:
        assert result == expected


@given(st.text(alphabet="ab12.e+-*/^(), \n_x", max_size=40))
def test_no_text_does_more_than_parse_or_say_where_it_is_wrong(text: str) -> None:
    result = outcome(text)
    assert "character " in result if isinstance(result, str) else math.isfinite(result)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "character 1: expected a number, a name or '(', found 'the end'"),
        ("a +", "character 4: expected a number"),
        ("a b", "character 3: unexpected 'b'"),
        ("(a", "character 3: expected ')', found 'the end'"),
        ("a)", "character 2: unexpected ')'"),
        ("c + 1", "character 1: unknown name 'c'; graders: a, b, precision, recall"),
        ("a + sin(1)", "character 5: unknown function 'sin'; functions: min, max"),
        ("sqrt(1, 2)", "character 1: sqrt takes one value, got 2"),
        ("min()", "character 5: expected a number"),
        ("a ** b", "character 4: expected a number"),
        ("a % b", "character 3: unexpected '%'"),
        ("a.real", "character 2: unexpected '.'"),
        ("__import__('os')", 'character 12: unexpected "\'"'),
        ("1e999", "character 1: 1e999 is too large"),
        ("a ² b", "character 3: unexpected '²'"),
        ("min", "character 1: unknown name 'min'"),
        ("(" * 65 + "1" + ")" * 65, "nested deeper than 64"),
        ("-" * 100 + "1", "nested deeper than 64"),
        ("2^" * 100 + "1", "nested deeper than 64"),
        ("1+" * 3000 + "1", "6001 characters; at most 4096 are read"),
    ],
)
def test_a_wrong_formula_says_where(text: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        value(text)
    assert shown in str(caught.value)
    assert str(caught.value).startswith("here")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1 / (a - a)", "character 3: / of 1, 0"),
        ("1 + log(-a)", "character 5: log of -0.5"),
        ("sqrt(-1)", "character 1: sqrt of -1"),
        ("(-8) ^ 0.5", "character 6: ^ of -8, 0.5"),
        ("10 ^ 999", "character 4: ^ of 10, 999"),
        ("exp(1000)", "character 1: exp of 1000"),
        ("1e308 * 10", "character 7: * of 1e+308, 10: the result is not a finite number"),
        ("0 ^ -1", "character 3: ^ of 0, -1"),
    ],
)
def test_a_value_that_is_not_finite_says_where_it_arose(text: str, shown: str) -> None:
    with pytest.raises(GraderError) as caught:
        value(text)
    assert shown in str(caught.value)


def test_long_sums_need_no_recursion() -> None:
    assert value("1+" * 2000 + "1") == 2001.0


def test_a_part_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(GraderError, match="gave nan"):
        parse_formula("a", ["a"], "here").value({"a": math.nan})
