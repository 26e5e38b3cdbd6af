"""Graders that people write: what a sandbox must not break."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Benign:
    """An ordinary grader and what it must say."""

    source: str
    text: str
    item: Mapping[str, Any] = field(default_factory=dict[str, Any])
    expected: Any


BENIGN: Mapping[str, Benign] = {
    "exact answer": Benign(
        source="""
def grade(sample, item):
    return 1.0 if sample["output_text"].strip() == item["answer"] else 0.0
""",
        text=" 42\n",
        item={"answer": "42"},
        expected=1.0,
    ),
    "answer in a box, by regular expression": Benign(
        source=r"""
import re

def grade(sample, item):
    found = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", sample["output_text"])
    return float(bool(found) and found[-1].replace(" ", "") == item["answer"])
""",
        text=r"so \boxed{1} or rather \boxed{\frac{1}{2}}",
        item={"answer": r"\frac{1}{2}"},
        expected=1.0,
    ),
    "comparison of JSON, key by key": Benign(
        source="""
import json

def grade(sample, item):
    try:
        given = json.loads(sample["output_text"])
    except ValueError:
        return 0.0
    wanted = item["wanted"]
    return sum(given.get(key) == value for key, value in wanted.items()) / len(wanted)
""",
        text='{"name": "Ada", "year": 1815, "place": "Paris"}',
        item={"wanted": {"name": "Ada", "year": 1815, "place": "London", "job": None}},
        expected=0.75,
    ),
    "numbers with a tolerance, by numpy": Benign(
        source="""
import numpy as np

def grade(sample, item):
    given = np.array([float(word) for word in sample["output_text"].split()])
    return float(np.isclose(given, np.array(item["values"]), rtol=1e-3).mean())
""",
        text="1.0 2.001 3.5 4.0",
        item={"values": [1.0, 2.0, 3.0, 4.0]},
        expected=0.75,
    ),
    "linear algebra, by numpy's threads": Benign(
        source="""
import numpy as np

def grade(sample, item):
    size = int(sample["output_text"])
    matrix = np.random.default_rng(0).normal(size=(size, size)) + size * np.eye(size)
    return float(np.allclose(matrix @ np.linalg.inv(matrix), np.eye(size)))
""",
        text="300",
        expected=1.0,
    ),
    "rank correlation, by scipy": Benign(
        source="""
from scipy import stats

def grade(sample, item):
    given = [float(word) for word in sample["output_text"].split(",")]
    return float(stats.spearmanr(given, item["order"]).statistic)
""",
        text="10, 20, 30, 40",
        item={"order": [1, 2, 3, 4]},
        expected=1.0,
    ),
    "root finding, by scipy": Benign(
        source="""
from scipy.optimize import brentq

def grade(sample, item):
    root = brentq(lambda x: x ** 2 - item["square"], 0, item["square"])
    return 1.0 if abs(root - float(sample["output_text"])) < 1e-4 else 0.0
""",
        text="1.41421",
        item={"square": 2.0},
        expected=1.0,
    ),
    "similar strings, by rapidfuzz": Benign(
        source="""
from rapidfuzz import fuzz, process

def grade(sample, item):
    best, score, _ = process.extractOne(sample["output_text"], item["options"], scorer=fuzz.WRatio)
    return round(score / 100, 2) if best == item["answer"] else 0.0
""",
        text="Amsterdam",
        item={"options": ["Rotterdam", "Amsterdam", "Utrecht"], "answer": "Amsterdam"},
        expected=1.0,
    ),
    "equal formulas, by sympy": Benign(
        source="""
import sympy
from sympy.parsing.sympy_parser import parse_expr

def grade(sample, item):
    difference = parse_expr(sample["output_text"]) - parse_expr(item["formula"])
    return 1.0 if sympy.simplify(difference) == 0 else 0.0
""",
        text="(x + 1)**2",
        item={"formula": "x**2 + 2*x + 1"},
        expected=1.0,
    ),
    "overlap of words, by nltk": Benign(
        source="""
from nltk.stem import PorterStemmer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

def grade(sample, item):
    stem = PorterStemmer().stem
    texts = sample["output_text"], item["text"]
    given, wanted = ([stem(word) for word in text.lower().split()] for text in texts)
    return round(sentence_bleu([wanted], given, smoothing_function=SmoothingFunction().method1), 3)
""",
        text="the cats sat on the mats",
        item={"text": "The cat sat on the mat"},
        expected=1.0,
    ),
    "summary, by rouge": Benign(
        source="""
from rouge_score import rouge_scorer

SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)

def grade(sample, item):
    return round(SCORER.score(item["text"], sample["output_text"])["rougeL"].fmeasure, 3)
""",
        text="the quick brown fox",
        item={"text": "the quick brown fox"},
        expected=1.0,
    ),
    "dates in several notations": Benign(
        source="""
from datetime import date, datetime, timezone

def grade(sample, item):
    for notation in ("%Y-%m-%d", "%d %B %Y", "%d/%m/%Y"):
        try:
            given = datetime.strptime(sample["output_text"], notation).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
        return max(0.0, 1 - abs((given.date() - date.fromisoformat(item["day"])).days) / 10)
    return 0.0
""",
        text="3 March 2025",
        item={"day": "2025-03-01"},
        expected=0.8,
    ),
    "time zones of the standard library": Benign(
        source="""
from datetime import datetime
from zoneinfo import ZoneInfo

def grade(sample, item):
    given = datetime.fromisoformat(sample["output_text"])
    return float(given == datetime(2025, 7, 1, 12, tzinfo=ZoneInfo("UTC")))
""",
        text="2025-07-01T14:00:00+02:00",
        expected=1.0,
    ),
    "normalised SQL": Benign(
        source="""
import re

def words(text):
    return re.findall(r"'[^']*'|[a-z_][a-z0-9_]*|[<>=!]+|[(),*;]|[0-9.]+", text.lower())

def grade(sample, item):
    return float(words(sample["output_text"]) == words(item["query"]))
""",
        text="select  A, count(*)\nFROM t  where B >= 3",
        item={"query": "SELECT a, COUNT(*) FROM t WHERE b >= 3"},
        expected=1.0,
    ),
    "queries run on a database in memory": Benign(
        source="""
import sqlite3

def grade(sample, item):
    with sqlite3.connect(":memory:") as base:
        base.executescript(item["schema"])
        rows = [base.execute(text).fetchall() for text in (sample["output_text"], item["query"])]
    return float(sorted(rows[0]) == sorted(rows[1]))
""",
        text="select n from t where n > 1 order by n desc",
        item={
            "schema": "create table t (n int); insert into t values (1), (2), (3);",
            "query": "select n from t where not n < 2",
        },
        expected=1.0,
    ),
    "sets and their F1": Benign(
        source="""
def grade(sample, item):
    given, wanted = set(sample["output_text"].split(", ")), set(item["labels"])
    hits = len(given & wanted)
    return 2 * hits / (len(given) + len(wanted))
""",
        text="a, b, c",
        item={"labels": ["b", "c", "d"]},
        expected=2 / 3,
    ),
    "several files in the temporary folder": Benign(
        source="""
import csv, gzip, json, os, tempfile
from pathlib import Path

def grade(sample, item):
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.csv")
        rows.write_text(sample["output_text"])
        with rows.open(newline="") as file:
            read = list(csv.DictReader(file))
        packed = Path(folder, "deep", "rows.json.gz")
        packed.parent.mkdir()
        with gzip.open(packed, "wt") as file:
            json.dump(read, file)
        os.rename(packed, Path(folder, "moved.gz"))
        with gzip.open(Path(folder, "moved.gz"), "rt") as file:
            return float(sum(int(row["n"]) for row in json.load(file)) == item["sum"])
""",
        text="n,name\n1,a\n2,b\n",
        item={"sum": 3},
        expected=1.0,
    ),
    "files by relative name": Benign(
        source="""
def grade(sample, item):
    with open("notes.txt", "w") as file:
        file.write(sample["output_text"])
    return float(len(open("notes.txt").read()))
""",
        text="four",
        expected=4.0,
    ),
    "a pool of threads": Benign(
        source="""
from concurrent.futures import ThreadPoolExecutor

def grade(sample, item):
    with ThreadPoolExecutor(4) as pool:
        lengths = list(pool.map(len, sample["output_text"].split()))
    return sum(lengths) / len(lengths)
""",
        text="ab abcd",
        expected=3.0,
    ),
    "an event loop": Benign(
        source="""
import asyncio

async def look(word, item):
    await asyncio.sleep(0.001)
    return word in item["words"]

async def all_of(sample, item):
    found = await asyncio.gather(*(look(word, item) for word in sample["output_text"].split()))
    return sum(found) / len(found)

def grade(sample, item):
    return asyncio.run(all_of(sample, item))
""",
        text="x y",
        item={"words": ["y"]},
        expected=0.5,
    ),
    "code of the model, parsed and never run": Benign(
        source="""
import ast

def grade(sample, item):
    try:
        module = ast.parse(sample["output_text"])
    except SyntaxError:
        return 0.0
    names = {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
    return float(item["name"] in names)
""",
        text="def area(r):\n    return 3 * r * r",
        item={"name": "area"},
        expected=1.0,
    ),
    "tool calls, by name and argument": Benign(
        source="""
import json

def grade(sample, item):
    calls = sample["output_tools"]
    right = [c for c in calls if c["function"]["name"] == item["tool"]]
    given = json.loads(right[-1]["function"]["arguments"]) if right else {}
    return 0.5 * bool(right) + 0.5 * (given == item["arguments"])
""",
        text="",
        item={"tool": "get", "arguments": {"id": "W1"}},
        expected=1.0,
    ),
    "tables, dataclasses and exact fractions": Benign(
        source="""
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

@dataclass
class Line:
    name: str
    price: Decimal

def grade(sample, item):
    lines = [Line(n, Decimal(p)) for n, p in (l.split(": ") for l in sample["output_text"].split("; "))]
    counted = Counter(line.name for line in lines)
    total = sum((line.price for line in lines), Decimal(0))
    return float(Fraction(total) / Fraction(item["total"])) if counted["tea"] == 2 else 0.0
""",
        text="tea: 0.10; milk: 0.20; tea: 0.10",
        item={"total": "0.4"},
        expected=1.0,
    ),
    "text in any script": Benign(
        source="""
import unicodedata

def grade(sample, item):
    fold = lambda text: unicodedata.normalize("NFKC", text).casefold()
    return {"score": float(fold(sample["output_text"]) == fold(item["text"])), "seen": item["text"]}
""",
        text="ＳＴＲＡẞＥ 東京 🎏",
        item={"text": "straße 東京 🎏"},
        expected={"score": 1.0, "seen": "straße 東京 🎏"},
    ),
    "a table built once, when imported": Benign(
        source="""
import math, random

TABLE = [math.gcd(a, 360) for a in range(200_000)]

def grade(sample, item):
    print("looking up", sample["output_text"])
    return TABLE[int(sample["output_text"])] / 360 + 0 * random.Random(1).random()
""",
        text="720",
        expected=1.0,
    ),
    "processes that do the work": Benign(
        source="""
import os

def grade(sample, item):
    far, near = os.pipe()
    if not os.fork():
        os.write(near, sample["output_text"].upper().encode())
        os._exit(0)
    os.close(near)
    os.wait()
    return float(os.read(far, 99) == b"ABC")
""",
        text="abc",
        expected=1.0,
    ),
    "much memory, within the limit": Benign(
        source="""
import numpy as np

def grade(sample, item):
    return float(np.ones(32 << 20, dtype=np.float64).sum() == 32 << 20)
""",
        text="",
        expected=1.0,
    ),
}
