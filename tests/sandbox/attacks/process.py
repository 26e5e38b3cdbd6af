"""Other processes: ending them, reading them, outliving the call."""

from attacks.attack import Attack, any_value, killed, leaked, said

ATTACKS = (
    Attack(
        name="kills a process of the machine",
        judge=killed,
        source="""
def attack(item, number):
    os.kill(item["victim"], signal.SIGKILL)
    time.sleep(0.1)
""",
    ),
    Attack(
        name="stops a process of the machine",
        judge=killed,
        source="""
def attack(item, number):
    os.kill(item["victim"], signal.SIGSTOP)
    time.sleep(0.1)
""",
    ),
    Attack(
        name="kills through a process descriptor",
        judge=killed,
        source="""
def attack(item, number):
    fd = system("pidfd_open", item["victim"], 0)
    system("pidfd_send_signal", fd, int(signal.SIGKILL), 0, 0)
    time.sleep(0.1)
""",
    ),
    Attack(
        name="kills everything it may",
        judge=killed,
        not_outside="run as root, it would end the machine's processes",
        source="""
def attack(item, number):
    os.kill(-1, signal.SIGKILL)
""",
    ),
    Attack(
        name="kills its process group",
        judge=any_value,
        not_outside="it would end the tests",
        source="""
def attack(item, number):
    os.kill(0, signal.SIGKILL)
    time.sleep(1)
    return 1.0
""",
    ),
    Attack(
        name="kills the process that forked it",
        judge=any_value,
        not_outside="it would end the tests",
        source="""
def attack(item, number):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(0.5)
    raise RuntimeError("whatever came of that")
""",
    ),
    Attack(
        name="stops the process that forked it",
        judge=any_value,
        not_outside="it would stop the tests",
        source="""
def attack(item, number):
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(0.5)
    raise RuntimeError("whatever came of that")
""",
    ),
    Attack(
        name="traces a process of the machine",
        source="""
def attack(item, number):
    return ["traced", system("ptrace", 0x4206, item["victim"], 0, 0)]  # PTRACE_SEIZE
""",
    ),
    Attack(
        name="reads another process's memory by system call",
        judge=leaked,
        source="""
def attack(item, number):
    size = item["secret_length"]
    text = ctypes.create_string_buffer(size)
    near = struct.pack("NN", ctypes.addressof(text), size)
    far = struct.pack("NN", item["victim_address"], size)
    system("process_vm_readv", item["victim"], near, 1, far, 1, 0)
    return text.raw.decode("utf-8", "replace")
""",
    ),
    Attack(
        name="reads another process's memory through procfs",
        judge=leaked,
        source="""
def attack(item, number):
    with open(f"/proc/{item['victim']}/mem", "rb", 0) as memory:
        memory.seek(item["victim_address"])
        return memory.read(item["secret_length"]).decode("utf-8", "replace")
""",
    ),
    Attack(
        name="opens the memory of the process that forked it for writing",
        source="""
def attack(item, number):
    os.close(os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR))
    return os.getppid()
""",
    ),
    Attack(
        name="opens the descriptors of the process that forked it",
        source="""
def attack(item, number):
    folder = f"/proc/{os.getppid()}/fd"
    return first(*(lambda fd=fd: [os.open(f"{folder}/{fd}", os.O_RDWR | os.O_NONBLOCK), fd]
                   for fd in os.listdir(folder)))
""",
    ),
    Attack(
        name="writes into the memory of the process that forked it by system call",
        source="""
def attack(item, number):
    text = ctypes.create_string_buffer(8)
    vector = struct.pack("NN", ctypes.addressof(text), 8)
    return reached("process_vm_writev", os.getppid(), vector, 1, vector, 1, 0)
""",
    ),
    Attack(
        name="takes an open file out of another process",
        judge=leaked,
        source="""
def attack(item, number):
    process = system("pidfd_open", item["victim"], 0)
    fd = system("pidfd_getfd", process, item["victim_fd"], 0)
    return os.pread(fd, 4096, 0).decode()
""",
    ),
    Attack(
        name="enters the namespaces of another process",
        needs_root=True,
        source="""
def attack(item, number):
    def enter():
        fd = os.open(f"/proc/{item['victim']}/ns/uts", os.O_RDONLY)
        return ["entered", system("setns", fd, 0)]
    return in_a_child(enter)
""",
    ),
    Attack(
        name="starts a daemon",
        source="""
def attack(item, number):
    if not os.fork():
        os.setsid()
        if not os.fork():
            for fd in range(3):
                os.close(fd)
            time.sleep(30)
        os._exit(0)
    time.sleep(0.2)
""",
    ),
    Attack(
        name="starts a daemon that ignores every signal",
        source="""
def attack(item, number):
    if not os.fork():
        os.setsid()
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        _LIBC.prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG: none
        os.closerange(0, 256)
        if not os.fork():
            time.sleep(30)
        os._exit(0)
    time.sleep(0.2)
""",
    ),
    Attack(
        name="leaves a child that keeps every descriptor open",
        source="""
def attack(item, number):
    if not os.fork():
        time.sleep(30)
        os._exit(0)
    return None
""",
    ),
    Attack(
        name="forks faster than it can be killed",
        timeout_s=2.0,
        source="""
def attack(item, number):
    # Never more than one alive at a time, so that only a kill of the whole group catches it.
    end = time.monotonic() + 8
    while time.monotonic() < end:
        if os.fork():
            os._exit(0)
        os.setsid()
    time.sleep(1)
    os._exit(0)
""",
    ),
    Attack(
        name="lets a child trace it, so that the parent cannot",
        judge=said,
        source="""
def attack(item, number):
    return in_a_child(lambda: ["traced", system("ptrace", 0, 0, 0, 0)])  # PTRACE_TRACEME
""",
    ),
)
