"""Which method comes next: ordered rules on what was measured, the first that holds wins. Pure.

`RULES` is the whole table. Each rule says when it holds, as alternatives of tests that hold
together; the numbers of an advice, and what would change it, come from those tests.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agentrft.core.config import AdvisorConfig
from agentrft.measure.diagnosis import MECHANICAL, FailureClass
from agentrft.measure.next_steps import TRAINS_WEIGHTS, Cost, NextStep
from agentrft.measure.power import rollouts_needed
from agentrft.measure.standing import Standing, share_of, share_of_failures
from agentrft.measure.statistics import Estimate

FORMAT = frozenset({FailureClass.MALFORMED_CALL, FailureClass.UNKNOWN_TOOL})
_HAIR = 1e-9
"""Shares that were computed on two ways are the same within this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What there is besides the standing."""

    demonstrations: int = 0
    """Of distinct tasks: the project's, and what a search has verified."""
    pairs: int = 0
    """Which of two is better, as somebody has said: rows of a file."""
    grader_trusted: bool = True
    """Whether its audit found nothing that blocks training."""
    grader_asks_model: bool = False
    treated: frozenset[str] = frozenset()
    """Failure classes that a search has tried to treat under this spec."""
    plateaued: bool = False
    """Whether the search's last rounds promoted nothing, or its budget is spent."""
    self_checked: bool = False
    """Whether a check before writes has been tried."""
    warm_started: bool = False
    parameters: float | None = None
    """Of the model; None if nobody knows."""
    endpoint: bool = False
    """The weights are somebody else's."""
    shorter_spec: bool = True
    """Whether there is one to distil the prompt into."""
    taken: frozenset[NextStep] = frozenset()
    """What has been done already and is not done again."""


AFTER_SEARCH = Supply(
    treated=frozenset(one.value for one in MECHANICAL), plateaued=True, self_checked=True
)
"""A search has had its budget: what it could treat, it has tried to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One number against one bound, or a plain yes or no."""

    name: str
    holds: bool
    shown: str
    """The number with its interval and the bound."""
    flip: str
    """What would have to become of it."""
    distance: float
    """How far the number is from the bound, relative to the bound; infinite for a yes or no."""
    value: Estimate | float | None = None
    unsure: bool = False
    """Whether the bound lies within the number's interval."""


Alternatives = tuple[tuple[Test, ...], ...]
"""Any of them suffices; within one all tests must hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the table."""

    number: str
    step: NextStep
    when: Callable[[Standing, Supply, AdvisorConfig], Alternatives]
    sentence: str
    """With `{largest}` for the largest mechanical failure class, `{k}` for rollouts per task and
    `{needed}` for the rollouts that show the largest acceptable effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Which method comes next, and why."""

    rule: str
    """`R0` to `R10`, or `-` if none holds."""
    method: NextStep
    reason: str
    """The rule's sentence and the numbers that made it hold."""
    numbers: Mapping[str, Estimate | float]
    runner_up: str
    """The next rule that holds; empty if none does."""
    would_flip: str
    cost: Cost | None = None
    """None for what this machine cannot do by itself."""
    not_taken: tuple[str, ...] = field(default=())
    """Rules that hold before this one but whose method cannot be had, and why."""


def advise(
    standing: Standing,
    supply: Supply,
    config: AdvisorConfig,
    *,
    costs: Mapping[NextStep, Cost] | None = None,
) -> Advice:
    """Return the first rule that holds and whose method can be had."""
    not_taken: dict[str, str] = {}
    holding = [(rule, met) for rule in RULES if (met := _met(rule.when(standing, supply, config)))]
    for place, (rule, met) in enumerate(holding):
        if obstacle := _obstacle(rule.step, supply):
            not_taken[rule.number] = f"{rule.number} would say {rule.step}, but {obstacle}"
            continue
        later = [other for other, _ in holding[place + 1 :] if other.number != rule.number]
        tests = tuple({test.shown: test for tests in met for test in tests}.values())
        return Advice(
            rule=rule.number,
            method=rule.step,
            reason=f"{_sentence(rule, standing, supply, config)}: {_shown(tests)}",
            numbers={test.name: test.value for test in tests if test.value is not None},
            runner_up=f"{later[0].number}: {later[0].step}" if later else "",
            would_flip=_flip(met),
            cost=(costs or {}).get(rule.step),
            not_taken=tuple(not_taken.values()),
        )
    missing = [t for t in _reinforcement(standing, supply, config)[0] if not t.holds]
    return Advice(
        rule="-",
        method=NextStep.NOTHING,
        reason="no rule has an advice"
        + (f"; for reinforcement these are out of range: {_shown(missing)}" if missing else ""),
        numbers={test.name: test.value for test in missing if test.value is not None},
        runner_up="",
        would_flip="; ".join(test.flip for test in missing),
        not_taken=tuple(not_taken.values()),
    )


def _met(alternatives: Alternatives) -> Alternatives:
    return tuple(tests for tests in alternatives if all(test.holds for test in tests))


def _obstacle(step: NextStep, supply: Supply) -> str:
    if step in TRAINS_WEIGHTS and supply.endpoint:
        return "weights behind an endpoint cannot change; train an open-weights `model` instead"
    if step in supply.taken:
        return "it has been done"
    if step is NextStep.DISTILLATION and not supply.shorter_spec:
        return "there is no shorter spec to distil into; name one in methods.distillation.spec"
    return ""


def _sentence(rule: Rule, standing: Standing, supply: Supply, config: AdvisorConfig) -> str:
    failed: Counter[str] = Counter()
    for task in standing.by_task:
        failed.update({c: n for c, n in task.classes.items() if c in _untreated(supply)})
    return rule.sentence.format(
        largest=failed.most_common(1)[0][0] if failed else "none",
        k=standing.samples,
        needed=rollouts_needed(
            config.detectable,
            p=standing.pass_1.value,
            within=standing.within,
            alpha=standing.alpha,
        ),
    )


def _shown(tests: Sequence[Test]) -> str:
    return "; ".join(test.shown for test in tests)


def _flip(met: Alternatives) -> str:
    """Every alternative that holds must stop to: by the test of it that is nearest to its bound."""
    nearest = {
        test.name: test for tests in met for test in [min(tests, key=lambda test: test.distance)]
    }
    return " and ".join(
        test.flip + (" (its interval reaches there)" if test.unsure else "")
        for test in nearest.values()
    )


def _written(value: Estimate | float, *, share: bool) -> str:
    def one(number: float) -> str:
        if share:
            return f"{number:.1%}"
        return f"{number / 1e6:g} million" if number >= 1e6 else f"{number:,.4g}"

    if isinstance(value, Estimate):
        return f"{one(value.value)} ({one(value.low)} to {one(value.high)})"
    return one(value)


def _number(
    name: str, value: Estimate | float | None, sign: str, bound: float, *, share: bool = True
) -> Test:
    if value is None:
        return Test(name=name, holds=False, shown=f"{name} not known", flip="", distance=0.0)
    number = value.value if isinstance(value, Estimate) else value
    holds = {
        ">=": number >= bound - _HAIR,
        ">": number > bound + _HAIR,
        "<=": number <= bound + _HAIR,
        "<": number < bound - _HAIR,
    }[sign]
    # What is at the bound flips by the smallest step to its other side.
    other = {">=": "below", ">": "to", "<=": "above", "<": "to"}[sign]
    back = {">=": "to", ">": "above", "<=": "to", "<": "below"}[sign]
    edge = _written(bound, share=share)
    return Test(
        name=name,
        holds=holds,
        shown=f"{name} {_written(value, share=share)}, bound {sign} {edge}",
        flip=f"{name} from {_written(number, share=share)} {other if holds else back} {edge}",
        distance=abs(number - bound) / max(abs(bound), abs(number), _HAIR),
        value=value,
        unsure=isinstance(value, Estimate) and value.low <= bound <= value.high,
    )


def _count(name: str, value: float | None, sign: str, bound: float) -> Test:
    return _number(name, value, sign, bound, share=False)


def _fact(name: str, *, holds: bool, otherwise: str) -> Test:
    return Test(name=name, holds=holds, shown=name, flip=otherwise, distance=float("inf"))


def _untreated(supply: Supply) -> frozenset[str]:
    return frozenset(one.value for one in MECHANICAL if one not in supply.treated)


def _unhealthy(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    flips = c.flip_share_model if u.grader_asks_model else c.flip_share
    blocked = _fact(
        "the grader's audit blocks",
        holds=not u.grader_trusted,
        otherwise="a grader that passes its audit",
    )
    # What somebody has compared can be learned without a grader.
    pairless = _count("preference pairs", u.pairs, "<", c.pairs)
    return (
        (
            _number(
                "rollouts lost to infrastructure", s.infrastructure, ">", c.infrastructure_share
            ),
        ),
        (
            _number(
                "rollouts that the grader failed on", s.grader_errors, ">", c.infrastructure_share
            ),
        ),
        (_number("grades that change when given again", s.flips, ">", flips),),
        (
            _count(
                "rank correlation with the held-out grader", s.gold_agreement, "<", c.gold_agreement
            ),
        ),
        (blocked, pairless),
    )


def _too_little(s: Standing, _u: Supply, c: AdvisorConfig) -> Alternatives:
    return (
        (_count("train tasks", s.train_tasks, "<", c.tasks),),
        (_number("smallest gain that the holdout shows", s.detectable, ">", c.detectable),),
    )


def _solved(s: Standing, _u: Supply, c: AdvisorConfig) -> Alternatives:
    return ((_number("pass@1", s.pass_1, ">=", c.solved),),)


def _nearly_solved(s: Standing, _u: Supply, c: AdvisorConfig) -> Alternatives:
    return (
        (
            _number("pass@1", s.pass_1, ">=", c.nearly_solved),
            _number(f"pass^{s.samples}", s.pass_hat_k, ">=", c.reliable),
        ),
    )


def _dear(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    ((long, settled),) = _long_prompt(s, u, c)
    return tuple((*tests, long, settled) for tests in (*_solved(s, u, c), *_nearly_solved(s, u, c)))


def _mechanical(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    classes = _untreated(u)
    of_rollouts, of_failures = share_of(s, classes), share_of_failures(s, classes)
    return (
        (
            _number(
                "untreated mechanical failures, of rollouts",
                of_rollouts,
                ">=",
                c.mechanical_rollouts,
            ),
        ),
        (
            _number(
                "untreated mechanical failures, of failures",
                of_failures,
                ">=",
                c.mechanical_failures,
            ),
        ),
    )


def _searchable(_s: Standing, u: Supply, _c: AdvisorConfig) -> Alternatives:
    return ((_fact("no plateau yet", holds=not u.plateaued, otherwise="a plateau of the search"),),)


def _hopeless(s: Standing, _u: Supply, c: AdvisorConfig) -> Alternatives:
    return (
        (
            _number("pass@1", s.pass_1, "<", c.hopeless_pass_1),
            _number(f"pass@{s.samples}", s.pass_k, "<", c.hopeless_pass_8),
        ),
        (_number("tasks never solved", s.zero, ">", c.hopeless_zero_share),),
    )


def _hopeless_but_shown(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    enough = _count("demonstrations", u.demonstrations, ">=", c.demonstrations)
    return tuple((*tests, enough) for tests in _hopeless(s, u, c))


def _hopeless_but_lucky(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    return tuple((*tests, *_own_successes(s, u, c)) for tests in _hopeless(s, u, c))


def _own_successes(s: Standing, u: Supply, c: AdvisorConfig) -> tuple[Test, ...]:
    solvable = (1 - s.zero.value) * s.train_tasks
    trusted = _fact(
        "a grader to trust", holds=u.grader_trusted, otherwise="a grader that passes its audit"
    )
    return (
        trusted,
        _count(f"train tasks it may solve in {s.samples} tries", solvable, ">=", c.demonstrations),
    )


def _unsure_of_form(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    cold = _fact("no warm start yet", holds=not u.warm_started, otherwise="a warm start")
    small = _count("parameters", u.parameters, "<", c.small_model)
    form = _number("failures of format, of rollouts", share_of(s, FORMAT), ">=", c.format_share)
    return (cold, small), (cold, form)


def _warm_up(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    enough = _count("demonstrations", u.demonstrations, ">=", c.demonstrations)
    return tuple((*tests, enough) for tests in _unsure_of_form(s, u, c))


def _warm_up_alone(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    return tuple((*tests, *_own_successes(s, u, c)) for tests in _unsure_of_form(s, u, c))


def _preferences(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    return (
        (
            _count("preference pairs", u.pairs, ">=", c.pairs),
            _number("pass@1", s.pass_1, ">=", c.competence),
        ),
    )


def _unreliable(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    gap = s.pass_1.value - s.pass_hat_k.value
    return (
        (
            _number("pass@1", s.pass_1, ">=", c.reliability_pass_1),
            _number(f"pass@1 minus pass^{s.samples}", gap, ">=", c.reliability_gap),
            _fact(
                "no check before writes yet",
                holds=not u.self_checked,
                otherwise="a check before writes, tried",
            ),
        ),
    )


def _in_range(s: Standing, u: Supply, c: AdvisorConfig) -> Iterator[Test]:
    yield _fact(
        "a grader to trust", holds=u.grader_trusted, otherwise="a grader that passes its audit"
    )
    yield _count("train tasks", s.train_tasks, ">=", c.train_tasks)
    yield _number("pass@1", s.pass_1, ">=", c.trainable_low)
    yield _number("pass@1", s.pass_1, "<=", c.trainable_high)


def _reinforcement(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    name = f"informative groups of {s.group_size}"
    return ((*_in_range(s, u, c), _number(name, s.informative, ">=", c.informative)),)


def _thin_reinforcement(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    name = f"informative groups of {s.group_size}"
    return ((*_in_range(s, u, c), _number(name, s.informative, ">=", c.informative_least)),)


def _long_prompt(s: Standing, u: Supply, c: AdvisorConfig) -> Alternatives:
    return (
        (
            _count("prompt tokens", s.prompt_tokens, ">=", c.long_prompt),
            _fact(
                "the prompt is settled",
                holds=u.plateaued,
                otherwise="a search that still finds something",
            ),
        ),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        number="R0",
        step=NextStep.FIX,
        when=_unhealthy,
        sentence="what measures is not in order, so nothing else can be trusted",
    ),
    Rule(
        number="R1",
        step=NextStep.COLLECT,
        when=_too_little,
        sentence="too few tasks to show anything; {needed} holdout rollouts of each spec would do",
    ),
    Rule(
        number="R2",
        step=NextStep.DISTILLATION,
        when=_dear,
        sentence="solved, under a long and settled prompt; train it into the weights",
    ),
    Rule(
        number="R2",
        step=NextStep.STOP,
        when=_solved,
        sentence="solved; make the tasks harder or stop",
    ),
    Rule(
        number="R2",
        step=NextStep.STOP,
        when=_nearly_solved,
        sentence="solved well and reliably; stop, or make it cheaper",
    ),
    Rule(
        number="R3",
        step=NextStep.STRUCTURE,
        when=_mechanical,
        sentence="failures that structure treats come first, {largest} before the others",
    ),
    Rule(
        number="R4",
        step=NextStep.PROMPT,
        when=_searchable,
        sentence="prompt and structure are cheaper than weights, and the search is not exhausted",
    ),
    Rule(
        number="R5",
        step=NextStep.SUPERVISED,
        when=_hopeless_but_shown,
        sentence="reinforcement has nothing to learn from; imitate first",
    ),
    Rule(
        number="R5",
        step=NextStep.REJECTION,
        when=_hopeless_but_lucky,
        sentence="reinforcement has little to learn from; imitate the rare successes first",
    ),
    Rule(
        number="R5",
        step=NextStep.DEMONSTRATIONS,
        when=_hopeless,
        sentence="reinforcement has nothing to learn from and there is too little to imitate; get "
        "demonstrations from a teacher, a human or easier tasks, or take another model",
    ),
    Rule(
        number="R6",
        step=NextStep.SUPERVISED,
        when=_warm_up,
        sentence="a warm start before reinforcement, then measure pass@{k} again, since imitation can "
        "narrow it",
    ),
    Rule(
        number="R6",
        step=NextStep.REJECTION,
        when=_warm_up_alone,
        sentence="a warm start from its own successes, since there are too few demonstrations, then "
        "measure pass@{k} again",
    ),
    Rule(
        number="R7",
        step=NextStep.PREFERENCE,
        when=_preferences,
        sentence="somebody has said what is better; learn that before what the grader rewards",
    ),
    Rule(
        number="R8",
        step=NextStep.STRUCTURE,
        when=_unreliable,
        sentence="it can, but not each time; a check before writes and a lower temperature come first",
    ),
    Rule(
        number="R9",
        step=NextStep.REINFORCEMENT,
        when=_reinforcement,
        sentence="many groups hold passes and failures, which is what reinforcement learns from",
    ),
    Rule(
        number="R9",
        step=NextStep.REINFORCEMENT,
        when=_thin_reinforcement,
        sentence="few groups hold passes and failures; reinforce with larger groups, tasks of middling "
        "difficulty and partial credit, or imitate first",
    ),
    Rule(
        number="R10",
        step=NextStep.DISTILLATION,
        when=_long_prompt,
        sentence="the prompt is long and settled; train it into the weights",
    ),
)
"""In order; the first that holds wins."""
