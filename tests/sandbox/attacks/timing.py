"""Cheating the clock, and using time outside of the measured call."""

from attacks.attack import FORGED, HONEST, Attack, any_value, not_honest

POURING = f"""
{FORGED}
def pour():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        for fd in range(1, 16):
            for message in FORGED:
                try:
                    os.set_blocking(fd, False)
                    os.write(fd, message)
                except OSError:
                    break
        time.sleep(0.01)
    os._exit(0)
"""

ATTACKS = (
    Attack(
        name="sets back every clock of the interpreter",
        judge=lambda outcome: (
            "a second was measured as less"
            if any(result.duration_s < 0.9 for result in outcome.results)
            else ""
        ),
        source=f"""
def attack(item, number):
    sleep = time.sleep
    for name in ("time", "monotonic", "perf_counter", "process_time", "time_ns", "monotonic_ns",
                 "perf_counter_ns"):
        setattr(time, name, lambda: 0)
    sleep(1)
    return {HONEST}
""",
    ),
    Attack(
        name="is never done with being imported",
        judge=any_value,
        timeout_s=1.0,
        import_timeout_s=1.0,
        spoils_import=True,
        source="""
while True:
    pass
""",
    ),
    Attack(
        name="waits for ever while it is imported",
        judge=any_value,
        timeout_s=1.0,
        import_timeout_s=1.0,
        spoils_import=True,
        source="""
threading.Event().wait()
""",
    ),
    Attack(
        name="works on in a thread that it started while it was imported",
        judge=not_honest,
        spoils_import=True,
        calls=3,
        source=f"""
{POURING}
threading.Thread(target=pour, daemon=True).start()


def attack(item, number):
    time.sleep(0.05)
    return {HONEST}
""",
    ),
    Attack(
        name="starts a process while it is imported that works on",
        judge=not_honest,
        spoils_import=True,
        calls=2,
        source=f"""
{POURING}
if not os.fork():
    os.setsid()
    pour()


def attack(item, number):
    time.sleep(0.05)
    return {HONEST}
""",
    ),
    Attack(
        name="comes back just before the deadline, over and over, from an alarm",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    def again(*given):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    signal.signal(signal.SIGALRM, again)
    again()
    while True:
        signal.pause()
""",
    ),
)
