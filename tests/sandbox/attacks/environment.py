"""Secrets of the environment and of procfs."""

from attacks.attack import Attack, leaked, said

ATTACKS = (
    Attack(
        name="reads its own environment variables",
        judge=leaked,
        source="""
def attack(item, number):
    return dict(os.environ)
""",
    ),
    Attack(
        name="reads the environment of its ancestors in procfs",
        judge=leaked,
        source="""
def attack(item, number):
    found = ""
    for pid in ("self", 1, os.getppid(), item["server"]):
        try:
            found += read(f"/proc/{pid}/environ")
        except OSError as error:
            problem = error
    if not found:
        raise problem
    return found
""",
    ),
    Attack(
        name="reads the environment of every process",
        judge=leaked,
        source="""
def attack(item, number):
    return first(*(
        lambda pid=pid: [t for t in [read(f"/proc/{pid}/environ")] if "canary-" in t]
        for pid in os.listdir("/proc") if pid.isdigit()
    ))
""",
    ),
    Attack(
        name="reads the command line of every process",
        judge=leaked,
        source="""
def attack(item, number):
    return first(*(
        lambda pid=pid: [t for t in [read(f"/proc/{pid}/cmdline")] if "canary-" in t]
        for pid in os.listdir("/proc") if pid.isdigit()
    ))
""",
    ),
    Attack(
        name="searches its own memory for what the parent knew",
        judge=leaked,
        source="""
def attack(item, number):
    memory = open("/proc/self/mem", "rb", 0)
    pattern = re.compile(rb"canary-[0-9a-f]{32}")
    for line in open("/proc/self/maps"):
        span, rights = line.split()[:2]
        low, high = (int(end, 16) for end in span.split("-"))
        if rights.startswith("rw") and high - low < 1 << 30:
            try:
                memory.seek(low)
                if found := pattern.search(memory.read(high - low)):
                    return found[0].decode()
            except (OSError, ValueError):
                pass
""",
    ),
    Attack(
        name="walks the block of environment strings on its stack",
        judge=leaked,
        source="""
def attack(item, number):
    entries = ctypes.POINTER(ctypes.c_char_p).in_dll(_LIBC, "environ")
    found = []
    while entries and (entry := entries[len(found)]):
        found.append(entry.decode("utf-8", "replace"))
    return found
""",
    ),
    Attack(
        name="reads descriptors that it inherited",
        judge=leaked,
        source="""
def attack(item, number):
    found = []
    for fd in range(3, 256):
        try:
            found.append(os.pread(fd, 4096, 0).decode("utf-8", "replace"))
        except OSError:
            pass
    return found
""",
    ),
    Attack(
        name="reads the kernel's log",
        needs_root=True,
        source="""
def attack(item, number):
    text = ctypes.create_string_buffer(4096)
    return first(
        lambda: system("syslog", 3, text, 4096),
        lambda: os.read(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK), 4096).decode(),
    )
""",
    ),
    Attack(
        name="reads addresses of the kernel",
        needs_root=True,
        source="""
def attack(item, number):
    lines = read("/proc/kallsyms").splitlines()[:50]
    return [line for line in lines if int(line.split()[0], 16)]
""",
    ),
    Attack(
        name="lists the listening servers of the machine",
        source="""
def attack(item, number):
    return first(
        lambda: f":{item['tcp4']:04X} " in read("/proc/net/tcp"),
        lambda: item["abstract"] in read("/proc/net/unix"),
    )
""",
    ),
    Attack(
        name="sees the processes of the machine",
        judge=said,
        source="""
def attack(item, number):
    return first(
        lambda: os.path.exists(f"/proc/{item['victim']}/stat") and read(f"/proc/{item['victim']}/stat"),
        lambda: [system("kcmp", os.getpid(), item["victim"], 1, 0, 0)],
    )
""",
    ),
    Attack(
        name="opens the machine's memory",
        needs_root=True,
        source="""
def attack(item, number):
    paths = [path for path in ("/proc/kcore", "/dev/mem", "/dev/port") if os.path.exists(path)]
    if not paths:
        raise OSError(errno.ENODEV, "this kernel shows no memory")
    return first(*(lambda path=path: [len(os.read(os.open(path, os.O_RDONLY), 16)), path]
                   for path in paths))
""",
    ),
)
