"""What a grader's Python source gives away without being run. Pure: parses, never imports."""

import ast
import importlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_EXECUTES = {
    *("eval", "exec", "__import__", "pickle.load", "pickle.loads", "marshal.loads", "dill.loads"),
    *("yaml.load", "yaml.unsafe_load", "joblib.load", "sympy.sympify", "sympy.parse_expr"),
    *("sympy.parsing.sympy_parser.parse_expr", "pandas.eval", "numexpr.evaluate"),
    *("os.system", "os.popen", "subprocess.run", "subprocess.call", "subprocess.Popen"),
    *("subprocess.check_output", "subprocess.check_call", "subprocess.getoutput"),
}
_REACHES = ("open", "socket.", "urllib.", "requests.", "httpx.", "http.client.", "shutil.")
_CLOCK = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.strftime"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today"),
    "datetime.date.today",
}
_CHANCE = ("random.", "numpy.random.", "secrets.", "uuid.uuid4", "uuid.uuid1", "os.urandom")
_SEEDED = {"random.Random", "random.seed", "numpy.random.default_rng", "numpy.random.RandomState"}
_MUTATORS = {
    *("append", "add", "update", "extend", "setdefault", "insert", "pop", "popitem", "remove"),
    *("discard", "clear", "appendleft", "extendleft"),
}
_PATTERN_FUNCTIONS = {
    f"re.{name}"
    for name in ("compile", "match", "search", "fullmatch", "findall", "finditer", "sub", "split")
}
_PUMPS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Smell:
    """One suspicious place."""

    line: int
    what: str
    grave: bool = False
    """The policy's text can take the grader over, or a failure pays."""


def scan(source: str) -> list[Smell]:
    """Return what looks wrong, by line; nothing for a source that cannot be parsed."""
    try:
        module = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError):
        return []
    names = _imported(module)
    found = [
        *_calls(module, names),
        *_handlers(module),
        *_paid_from_the_start(module),
        *_kept_between_samples(module, frozenset()),
    ]
    return sorted(found, key=lambda smell: (not smell.grave, smell.line))


def _imported(module: ast.Module) -> dict[str, str]:
    """Return local names of imported things with their full names."""
    names: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _called(node: ast.Call, names: dict[str, str]) -> str:
    head, dot, rest = ast.unparse(node.func).partition(".")
    return names.get(head, head) + dot + rest


def _calls(module: ast.Module, names: dict[str, str]) -> Iterator[Smell]:
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        name = _called(node, names)
        fixed = all(isinstance(argument, ast.Constant) for argument in node.args)
        if name in _EXECUTES and not (fixed and node.args):
            safe = name == "yaml.load" and "Safe" in ast.unparse(node)
            if not safe:
                yield Smell(line=node.lineno, what=f"{name}() runs what it is given", grave=True)
        elif name.startswith(_REACHES) and (name == "open" or "." in name):
            yield Smell(line=node.lineno, what=f"{name}() reaches beyond the grader")
        elif name in _CLOCK:
            yield Smell(line=node.lineno, what=f"{name}() makes the score depend on the clock")
        elif name.startswith(_CHANCE) and "(" not in name and not (name in _SEEDED and node.args):
            yield Smell(line=node.lineno, what=f"{name}() without a seed: the score is drawn")
        elif name == "hash":
            yield Smell(line=node.lineno, what="hash() of a text differs from process to process")
        elif name.endswith(".format") and "sample" in name:
            yield Smell(line=node.lineno, what="format() of a text that the model wrote")


def _handlers(module: ast.Module) -> Iterator[Smell]:
    for node in ast.walk(module):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
        returned = [n for n in ast.walk(node) if isinstance(n, ast.Return)]
        if any(_pays(statement.value) for statement in returned):
            yield Smell(line=node.lineno, what="an exception pays", grave=True)
        elif broad and not any(isinstance(n, ast.Raise) for n in ast.walk(node)):
            yield Smell(
                line=node.lineno, what="any exception becomes a score, a bug of the grader's too"
            )


def _pays(value: ast.expr | None) -> bool:
    match value:
        case ast.Constant(value=bool() | int() | float() as number):
            return number > 0
        case ast.Dict(keys=keys, values=values):
            return any(
                isinstance(key, ast.Constant) and key.value == "score" and _pays(entry)
                for key, entry in zip(keys, values, strict=True)
            )
        case _:
            return False


def _paid_from_the_start(module: ast.Module) -> Iterator[Smell]:
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        returned = {
            node.value.id
            for node in ast.walk(function)
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)
        }
        for statement in function.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if (
                    name in returned and _pays(value)
                ):
                    yield Smell(line=statement.lineno, what=f"{name} begins above 0")
                case _:
                    continue


def _kept_between_samples(node: ast.AST, known: frozenset[str]) -> Iterator[Smell]:
    """Yield changes inside functions to names that no function of the source binds."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            here = known | _bound(child)
            shared = {
                name for n in ast.walk(child) if isinstance(n, ast.Global) for name in n.names
            }
            for inner in ast.walk(child):
                name = _changed(inner, shared)
                if name and name not in here - shared:
                    what = f"{name} is changed and keeps that for later samples"
                    yield Smell(line=getattr(inner, "lineno", 0), what=what)
        else:
            yield from _kept_between_samples(child, known)


def _bound(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    names = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    names |= {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return frozenset(names)


def _changed(node: ast.AST, shared: set[str]) -> str:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if (
            method in _MUTATORS
        ):
            return name
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            return name
        case ast.Name(id=name, ctx=ast.Store()) if name in shared:
            return name
        case _:
            return ""


def regexes(source: str) -> list[str]:
    """Return the patterns that a source gives to `re` literally."""
    try:
        module = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError):
        return []
    names = _imported(module)
    found: dict[str, None] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and _called(node, names) in _PATTERN_FUNCTIONS:
            match node.args[:1]:
                case [ast.Constant(value=str() as pattern)]:
                    found[pattern] = None
                case _:
                    continue
    return list(found)


def catastrophes(pattern: str) -> list[str]:
    """Return texts on which a pattern with a repeat inside a repeat may backtrack for ever."""
    # The parser of `re` has no public name; what it returns are (operation, argument) pairs.
    parser: Any = importlib.import_module("re._parser")
    try:
        tree: list[tuple[Any, Any]] = list(parser.parse(pattern))
    except (ValueError, RecursionError, OverflowError, importlib.import_module("re").error):
        return []
    return list(dict.fromkeys(_pumped(tree, "")))


def _pumped(tree: Sequence[tuple[Any, Any]], before: str) -> Iterator[str]:
    for operation, argument in tree:
        for body in _bodies(operation, argument):
            if _is_repeat(operation) and argument[1] > _PUMPS and _varies(body):
                for optional in (False, True):
                    pump = _example(body, optional=optional)
                    yield before + pump * _PUMPS + "!"
            yield from _pumped(body, before)
        before += _example([(operation, argument)], optional=False)


def _is_repeat(operation: object) -> bool:
    return str(operation) in ("MAX_REPEAT", "MIN_REPEAT")


def _varies(body: Sequence[tuple[Any, Any]]) -> bool:
    """Say whether one text can be matched by a body in several ways, as far as its form shows."""
    for operation, argument in body:
        if (_is_repeat(operation) and argument[1] > 1) or str(operation) == "BRANCH":
            return True
        if any(_varies(inner) for inner in _bodies(operation, argument)):
            return True
    return False


def _bodies(operation: object, argument: Any) -> list[list[tuple[Any, Any]]]:
    match str(operation):
        case "MAX_REPEAT" | "MIN_REPEAT":
            return [list(argument[2])]
        case "SUBPATTERN":
            return [list(argument[-1])]
        case "BRANCH":
            return [list(branch) for branch in argument[1]]
        case _:
            return []


def _example(tree: Sequence[tuple[Any, Any]], *, optional: bool) -> str:
    """Return a short text that a pattern matches, in most cases."""
    text = ""
    for operation, argument in tree:
        match str(operation):
            case "LITERAL":
                text += chr(argument)
            case "ANY" | "NOT_LITERAL":
                text += "a"
            case "IN":
                text += _member(argument)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, body = argument
                times = max(least, 1) if optional or most > 1 else least
                text += _example(list(body), optional=optional) * min(times, 8)
            case "SUBPATTERN" | "BRANCH":
                text += _example(_bodies(operation, argument)[0], optional=optional)
            case _:
                continue
    return text


def _member(choices: Sequence[tuple[Any, Any]]) -> str:
    for operation, argument in choices:
        match str(operation):
            case "LITERAL":
                return chr(argument)
            case "RANGE":
                return chr(argument[0])
            case "CATEGORY":
                words = {"CATEGORY_DIGIT": "0", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "a"}
                return words.get(str(argument), "a")
            case _:
                return "a"
    return ""
