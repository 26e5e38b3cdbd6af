"""One call that helps or spoils another: through memory, files, processes, the worker that forks."""

from attacks.attack import HONEST, Attack, any_value, not_honest, said

REMEMBER = """
def attack(item, number):
    if number == 0:
        {write}
        return None
    return {read}
"""


def remembers(name: str, *, write: str, read: str, leaves_files: bool = False) -> Attack:
    """An attack that puts something away in its first call and finds it in the second."""
    return Attack(
        name=name,
        calls=2,
        source=REMEMBER.format(write=write, read=read),
        leaves_files=leaves_files,
    )


ATTACKS = (
    remembers(
        "remembers in a variable of its module",
        write="globals()['seen'] = True",
        read="globals().get('seen')",
    ),
    remembers(
        "remembers in the standard library",
        write="json.seen = True; os.environ['SEEN'] = '1'",
        read="getattr(json, 'seen', None) or os.environ.get('SEEN')",
    ),
    Attack(
        name="remembers in a temporary file",
        calls=2,
        leaves_files=True,
        source="""
def attack(item, number):
    found = None
    for place in places():
        path = os.path.join(place, item["marker"] + "-note")
        if number == 0:
            try:
                open(path, "w").write("seen")
            except OSError:
                pass
        elif os.path.exists(path):
            found = path
            os.unlink(path)
    return found
""",
    ),
    Attack(
        name="remembers for another owner of the same function",
        calls=2,
        owners=("alice", "bob"),
        leaves_files=True,
        source="""
def attack(item, number):
    found = globals().get("seen")
    globals()["seen"] = True
    for place in places():
        path = os.path.join(place, item["marker"] + "-note")
        if number == 0:
            try:
                open(path, "w").write("seen")
            except OSError:
                pass
        elif os.path.exists(path):
            found = path
            os.unlink(path)
    return found if number else None
""",
    ),
    remembers(
        "remembers in its working folder and its mask",
        write="os.umask(0o123); os.chdir('/')",
        read="os.umask(0) == 0o123",
    ),
    Attack(
        name="remembers in a segment of System V memory",
        calls=2,
        source="""
def attack(item, number):
    key = int(item["marker"][3:], 16) & 0x7FFFFFFF
    if number == 0:
        system("shmget", key, 4096, 0o1600)
        return None
    segment = system("shmget", key, 4096, 0)
    _LIBC.shmctl(segment, 0, None)
    return segment + 1
""",
    ),
    Attack(
        name="remembers in a message queue",
        calls=2,
        source="""
def attack(item, number):
    name = item["marker"].encode()
    if number == 0:
        system("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, 0)
        return None
    queue = system("mq_open", name, os.O_RDWR, 0, 0)
    _LIBC.mq_unlink(b"/" + name)
    return queue + 1
""",
    ),
    Attack(
        name="remembers in a process that waits on an abstract socket",
        calls=2,
        source="""
def attack(item, number):
    address = b"\\0" + item["marker"].encode() + b"-note"
    if number == 0:
        server = socket.socket(socket.AF_UNIX)
        server.bind(address)
        server.listen()
        if not os.fork():
            os.setsid()
            server.settimeout(5)
            server.accept()[0].send(b"seen")
            os._exit(0)
        return None
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(address)
    return caller.recv(16).decode()
""",
    ),
    Attack(
        name="reads what an earlier call was given, in memory of the worker that forks",
        calls=3,
        source="""
def attack(item, number):
    if number == 0:
        return None
    far, near = os.pipe()
    os.set_blocking(near, False)
    _LIBC.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    pattern = re.compile(rb"output_text[^a-z]{1,40}sample ([0-9]+)")
    seen = set()
    anchors = {id(object()) >> 20, id("x" * 100_000) >> 20, id([0] * 200) >> 20, id(attack) >> 20,
               id(item) >> 20, ctypes.addressof(ctypes.c_int()) >> 20}
    for block in sorted({anchor + near_by for anchor in anchors for near_by in range(-24, 24)}):
        for page in range(block << 20, (block + 1) << 20, 1 << 15):
            # The kernel says where there is no memory, instead of a crash.
            size = _LIBC.write(near, page, 1 << 15)
            if size > 0:
                seen.update(int(n) for n in pattern.findall(os.read(far, size)))
    return sorted(seen - {number}) or None
""",
    ),
    Attack(
        name="kills a call that runs beside it",
        judge=lambda outcome: (
            "the honest call was disturbed"
            if outcome.results[1].value != HONEST or outcome.results[1].fault is not None
            else ""
        ),
        calls=2,
        at_once=True,
        not_outside="it would end the tests",
        source=f"""
def attack(item, number):
    if number == 1:
        time.sleep(0.6)
        return {HONEST}
    time.sleep(0.2)
    parents = (os.getpid(), os.getppid(), 1)
    for pid in (*(p for p in range(2, 200)), *(p + os.getpid() for p in range(-20, 20))):
        if pid not in parents:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
""",
    ),
    Attack(
        name="reads the memory of a call that runs beside it",
        judge=said,
        calls=2,
        at_once=True,
        not_outside="calls do not run side by side there",
        source="""
def attack(item, number):
    if number == 0:
        mine = ["beside me", item["marker"]]
        time.sleep(1)
        return None
    time.sleep(0.3)
    return first(*(
        lambda pid=pid: [pid, os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))]
        for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, os.getpid())
    ))
""",
    ),
    Attack(
        name="uses up the worker's processes and dies",
        judge=not_honest,
        calls=3,
        timeout_s=2.0,
        source=f"""
def attack(item, number):
    if number == 0:
        for _ in range(40):
            if not os.fork():
                os.setsid()
                time.sleep(30)
                os._exit(0)
        os._exit(1)
    return {HONEST}
""",
    ),
    Attack(
        name="lowers the limits of the worker that forks",
        judge=said,
        not_outside="it would lower the tests' own limits",
        source="""
def attack(item, number):
    import resource
    limit = struct.pack("QQ", 3, 3)
    system("prlimit64", os.getppid(), resource.RLIMIT_NOFILE, limit, 0)
    return "lowered"
""",
    ),
    Attack(
        name="makes the worker that forks wait for it by stopping itself",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
""",
    ),
)
