"""Forging, doubling, bloating or jamming what comes back."""

from attacks.attack import (
    FORGED,
    HONEST,
    Attack,
    any_value,
    either,
    grown,
    long_detail,
    not_honest,
    not_json,
)

ATTACKS = (
    Attack(
        name="prints a score and exits with status 0",
        judge=any_value,
        source=f"""
{FORGED}
def attack(item, number):
    for message in FORGED:
        os.write(1, message)
    os._exit(0)
""",
    ),
    Attack(
        name="writes a score to every descriptor and exits with status 0",
        judge=any_value,
        source=f"""
{FORGED}
def attack(item, number):
    for fd in range(1, 256):
        for message in FORGED:
            try:
                os.set_blocking(fd, False)
                os.write(fd, message)
            except OSError:
                break
    os._exit(0)
""",
    ),
    Attack(
        name="writes a score to every descriptor before it returns another",
        judge=not_honest,
        source=f"""
{FORGED}
def attack(item, number):
    for fd in range(1, 256):
        for message in FORGED:
            try:
                os.set_blocking(fd, False)
                os.write(fd, message)
            except OSError:
                break
    return {HONEST}
""",
    ),
    Attack(
        name="announces four gigabytes on every descriptor and stays",
        judge=either(any_value, grown),
        timeout_s=1.0,
        source="""
def attack(item, number):
    for fd in range(1, 256):
        try:
            os.set_blocking(fd, False)
            os.write(fd, b"\\xff\\xff\\xff\\xf0")
        except OSError:
            pass
    time.sleep(60)
""",
    ),
    Attack(
        name="drips one byte at a time so that the caller keeps waiting",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    while True:
        for fd in range(1, 64):
            try:
                os.write(fd, b"0")
            except OSError:
                pass
        time.sleep(0.05)
""",
    ),
    Attack(
        name="returns twice, from a fork",
        judge=not_honest,
        calls=3,
        source=f"""
def attack(item, number):
    if number == 0 and not os.fork():
        time.sleep(0.3)
        return 1.0
    return {HONEST}
""",
    ),
    Attack(
        name="writes from a thread after it returned",
        judge=not_honest,
        calls=3,
        source=f"""
{FORGED}
def attack(item, number):
    def later():
        time.sleep(0.02)
        for fd in range(1, 64):
            for message in FORGED:
                try:
                    os.write(fd, message)
                except OSError:
                    break
    if number == 2:
        time.sleep(0.2)
    else:
        threading.Thread(target=later, daemon=number == 0).start()
    return {HONEST}
""",
    ),
    Attack(
        name="returns no number",
        judge=not_json,
        source="""
def attack(item, number):
    return float("nan")
""",
    ),
    Attack(
        name="returns infinity inside a list",
        judge=not_json,
        source="""
def attack(item, number):
    return {"score": [1.0, -float("inf")]}
""",
    ),
    Attack(
        name="returns an integer with too many digits for any reader",
        judge=not_json,
        source="""
def attack(item, number):
    sys.set_int_max_str_digits(0)
    return 1 << 40_000
""",
    ),
    Attack(
        name="returns half of a surrogate pair",
        judge=not_json,
        source="""
def attack(item, number):
    return {"\\ud800": "\\udfff"}
""",
    ),
    Attack(
        name="returns keys that become the same when written",
        judge=not_json,
        source="""
def attack(item, number):
    return {1: "a", "1": "b", None: "c", "null": "d"}
""",
    ),
    Attack(
        name="returns bytes",
        judge=not_json,
        source="""
def attack(item, number):
    return b"1.0"
""",
    ),
    Attack(
        name="returns an object that runs code where it is read",
        judge=any_value,
        source="""
class Payload:
    def __reduce__(self):
        return eval, ("1.0",)


def attack(item, number):
    return Payload()
""",
    ),
    Attack(
        name="returns a hundred megabytes",
        judge=either(not_json, grown),
        source="""
def attack(item, number):
    return "x" * (100 << 20)
""",
    ),
    Attack(
        name="returns a million small values",
        judge=either(not_json, grown),
        source="""
def attack(item, number):
    return [[]] * 1_000_000
""",
    ),
    Attack(
        name="returns a list nested too deep to be read",
        judge=not_json,
        source="""
def attack(item, number):
    sys.setrecursionlimit(1_000_000)
    value = []
    for _ in range(20_000):
        value = [value]
    return value
""",
    ),
    Attack(
        name="returns a list that contains itself",
        judge=any_value,
        source="""
def attack(item, number):
    value = []
    value.append(value)
    value.append(iter(value))
    return value
""",
    ),
    Attack(
        name="returns a mapping that never ends",
        judge=any_value,
        timeout_s=1.0,
        source="""
class Endless(dict):
    def items(self):
        while True:
            yield "a", 1
    __iter__ = keys = items

    def __len__(self):
        return 1


def attack(item, number):
    return Endless(a=1)
""",
    ),
    Attack(
        name="returns a number whose text is another number",
        judge=not_honest,
        source=f"""
class Two(float):
    def __repr__(self):
        return "1.0"
    __str__ = __float__ = __repr__


class Word(str):
    def __str__(self):
        return "1.0"


def attack(item, number):
    return {{"score": Two({HONEST})}}["score"]
""",
    ),
    Attack(
        name="returns a coroutine",
        judge=any_value,
        source="""
def attack(item, number):
    async def later():
        return 1.0
    coroutine = later()
    coroutine.close()
    return coroutine
""",
    ),
    Attack(
        name="raises an exception whose message is a hundred megabytes",
        judge=either(long_detail, grown),
        source="""
def attack(item, number):
    raise ValueError("x" * (100 << 20))
""",
    ),
    Attack(
        name="raises an exception that writes to the terminal of who reads it",
        judge=long_detail,
        source="""
def attack(item, number):
    raise type("\\x1b]0;owned\\x07", (ValueError,), {})("\\x1b[2J\\r\\u202e\\x00\\ud800")
""",
    ),
    Attack(
        name="raises an exception that hangs when it is shown",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    class Slow(Exception):
        def __str__(self):
            while True:
                time.sleep(1)
    raise Slow
""",
    ),
)
