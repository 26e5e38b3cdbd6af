import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from corpus.case import opened
from corpus.clean import CLEAN
from corpus.planted import PLANTED
from subjects import check, finding, of_object, of_scores, sums

from agentrft.audit.probe import Finding, Subject, Verdict
from agentrft.audit.references import find_answers
from agentrft.audit.source_scan import catastrophes, regexes, scan
from agentrft.core.config import SandboxConfig
from agentrft.core.protocols import Sandbox
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.sandbox.local import open_sandbox

CASES = {case.name: case for case in (*PLANTED, *CLEAN)}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    box = open_sandbox(SandboxConfig(), images=tmp_path_factory.mktemp("images"))
    yield box
    asyncio.run(box.close())


def of_source(source: str, sandbox: Sandbox) -> Subject:
    config = {"type": "python", "source": source}
    backends = Backends(sandbox=sandbox)
    return Subject(
        grader=build_grader(config, backends=backends),
        config=config,
        tasks=sums(4),
        backends=backends,
        answers=find_answers(config, sums(4), path="answer"),
    )


def of_case(name: str, probe: int, sandbox: Sandbox) -> Finding:
    with opened(CASES[name], sandbox) as subject:
        return finding(subject, probe)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def grade(s, i):\n    return eval(s['output_text'])", "eval() runs"),
        ("import pickle as p\ndef grade(s, i):\n    return p.loads(s)", "pickle.loads() runs"),
        ("from os import system\ndef grade(s, i):\n    system(s)", "os.system() runs"),
        ("def grade(s, i):\n    try:\n        f()\n    except:\n        return 1.0", "pays"),
        (
            "def grade(s, i):\n    try:\n        f()\n    except E:\n        return {'score': 1}",
            "pays",
        ),
        ("def grade(s, i):\n    try:\n        f()\n    except Exception:\n        pass", "any exc"),
        ("def grade(s, i):\n    score = 0.5\n    return score", "begins above 0"),
        ("import random\ndef grade(s, i):\n    return random.random()", "drawn"),
        ("import time\ndef grade(s, i):\n    return time.time() % 2", "clock"),
        ("from datetime import date\ndef grade(s, i):\n    return date.today().day", "clock"),
        ("seen = []\ndef grade(s, i):\n    seen.append(s)\n    return 1", "keeps"),
        ("n = 0\ndef grade(s, i):\n    global n\n    n += 1\n    return n", "keeps"),
        ("cache = {}\ndef grade(s, i):\n    cache[s] = 1\n    return 1", "keeps"),
        ("def grade(s, i):\n    return open('/etc/passwd').read() == s", "reaches"),
        ("def grade(s, i):\n    return hash(s) % 2", "differs"),
        ("def grade(sample, i):\n    return sample['output_text'].format(i) == ''", "format()"),
    ],
)
def test_a_source_that_cannot_be_trusted_says_where(source: str, words: str):
    smells = scan(source)
    assert any(words in smell.what for smell in smells), smells
    assert all(0 < smell.line <= len(source.splitlines()) for smell in smells)


@pytest.mark.parametrize(
    "source",
    [
        "import random\ndef grade(s, i):\n    return random.Random(7).random()",
        "import ast\ndef grade(s, i):\n    return ast.literal_eval(s['x'])",
        "def grade(s, i):\n    try:\n        f()\n    except ValueError:\n        return 0.0",
        "def grade(s, i):\n    words = []\n    words.append(s)\n    return len(words)",
        "def grade(s, i):\n    score = 0.0\n    return score",
        "import yaml\ndef grade(s, i):\n    return yaml.load(s, Loader=yaml.SafeLoader)",
        "class D:\n    def f(self):\n        self.done.append(1)",
        "not python at all (",
    ],
)
def test_an_ordinary_source_has_no_smell(source: str):
    assert scan(source) == []


def test_patterns_are_found_and_only_nested_repeats_are_attacked():
    source = (
        "import re as r\nP = r.compile(r'^(a+)+$')\ndef grade(s, i):\n    r.match('x[0-9]+', s)"
    )
    assert regexes(source) == ["^(a+)+$", "x[0-9]+"]
    assert catastrophes("^(a+)+$") == ["a" * 32 + "!"]
    assert catastrophes(r"id: (\w+\s?)*$")[0].startswith("id: aaaa")
    assert catastrophes("x[0-9]+") == []
    assert catastrophes("(unclosed") == []


def test_code_in_the_answer_is_seen_to_run(sandbox: Sandbox):
    found = of_case("eval of what the model wrote", 32, sandbox)
    assert found.verdict is Verdict.FOOLED
    assert found.score == 1.0


def test_code_whose_value_is_thrown_away_is_seen_by_the_time_it_takes(sandbox: Sandbox):
    source = (
        "def grade(sample, item):\n"
        "    try:\n"
        "        eval(sample['output_text'])\n"
        "    except Exception:\n"
        "        pass\n"
        "    return 0.0\n"
    )
    found = finding(of_source(source, sandbox), 32)
    assert found.verdict is Verdict.FOOLED
    assert "sleeps" in found.summary


@pytest.mark.parametrize("name", ["first number", "checked arithmetic", "normalised label"])
def test_a_grader_that_only_reads_text_runs_none_of_it(name: str, sandbox: Sandbox):
    assert of_case(name, 32, sandbox).verdict is Verdict.PASS


def test_a_text_that_stops_the_grader_is_found(sandbox: Sandbox):
    found = of_case("catastrophic regex", 33, sandbox)
    assert (found.verdict, found.text) == (Verdict.FOOLED, "0" * 32 + "!")


def test_a_text_that_makes_the_grader_fail_is_a_warning(sandbox: Sandbox):
    found = of_case("JSON equality", 33, sandbox)
    assert found.verdict is Verdict.WARN
    assert "RecursionError" in found.summary


def test_bombs_do_no_harm_to_a_careful_grader(sandbox: Sandbox):
    assert of_case("checked arithmetic", 33, sandbox).verdict is Verdict.PASS


def test_what_runs_in_this_process_is_not_bombed_but_its_patterns_are_told():
    source = "import re\ndef grade(task, trajectory):\n    return re.match('(a+)+$', 'a') and 1.0"
    found = finding(of_scores(lambda task, text: 0.0, sums(4), grader_source=source), 33)
    assert found.verdict is Verdict.WARN
    assert "not tried" in found.summary


def test_an_exception_that_pays_is_found(sandbox: Sandbox):
    assert of_case("exception pays", 34, sandbox).verdict is Verdict.FOOLED


def test_a_broken_row_that_is_graded_is_found(sandbox: Sandbox):
    lenient = "def grade(s, item):\n    return float(item.get('answer', '') in s['output_text'])"
    assert finding(of_source(lenient, sandbox), 34).verdict is Verdict.FOOLED
    silent = "def grade(s, item):\n    return float(s['output_text'] == item.get('answer'))"
    assert finding(of_source(silent, sandbox), 34).verdict is Verdict.WARN
    strict = "def grade(s, item):\n    return float(s['output_text'] == item['answer'])"
    assert finding(of_source(strict, sandbox), 34).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rolls dice", "the same answer is graded"),
        ("looks at the clock", "400 days later"),
        ("hash order", "the same answer is graded|PYTHONHASHSEED"),
        ("remembers other samples", "the same answer is graded"),
    ],
)
def test_a_score_that_is_not_the_answers_alone_is_found(name: str, words: str, sandbox: Sandbox):
    found = of_case(name, 35, sandbox)
    assert found.verdict in (Verdict.WARN, Verdict.FOOLED)
    assert re.search(words, found.summary), found.summary


@pytest.mark.parametrize("name", ["real date", "exact set of codes", "equal in Python"])
def test_a_score_that_is_the_answers_alone_stays(name: str, sandbox: Sandbox):
    assert of_case(name, 35, sandbox).verdict is Verdict.PASS


def test_a_grader_object_without_code_has_no_source_to_read():
    config: dict[str, Any] = check("eq")
    assert finding(of_object(config, sums()), 31).verdict is Verdict.SKIPPED
