"""Taking more than a call may have: time, memory by many routes, processes, descriptors, disk."""

from attacks.attack import Attack, any_value, either, grown, said

# Half as much again as a call may have: the worker's own share is no evidence.
MEMORY = 768 << 20
DISK = 96 << 20
PROCESSES = 72
DESCRIPTORS = 10_000
FILES = 50_000

ATTACKS = (
    Attack(
        name="spins",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    while True:
        pass
""",
    ),
    Attack(
        name="spins inside one operation of the interpreter",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    return len(str(9 ** 9 ** 9))
""",
    ),
    Attack(
        name="spins inside a regular expression",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    return bool(re.match(r"(a+)+$", "a" * 40 + "b"))
""",
    ),
    Attack(
        name="sleeps for ever",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    while True:
        signal.pause()
""",
    ),
    Attack(
        name="swallows every signal and goes on",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    for each in range(1, 65):
        try:
            signal.signal(each, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    signal.alarm(0)
    while True:
        try:
            time.sleep(0.1)
        except BaseException:
            pass
""",
    ),
    Attack(
        name="spins in children and waits for them",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    for _ in range(4):
        if not os.fork():
            while True:
                pass
    os.wait()
""",
    ),
    Attack(
        name="fills memory",
        source=f"""
def attack(item, number):
    blocks = []
    while len(blocks) << 25 <= {MEMORY}:
        blocks.append(bytearray(b"x") * (1 << 25))
    return [len(blocks) << 25, "bytes"]
""",
    ),
    Attack(
        name="fills memory shared with nobody, by mapping",
        source=f"""
def attack(item, number):
    import mmap
    blocks = []
    for _ in range({MEMORY} // (1 << 25) + 1):
        block = mmap.mmap(-1, 1 << 25)
        for page in range(0, 1 << 25, 4096):
            block[page] = 1
        blocks.append(block)
    return [len(blocks) << 25, "bytes"]
""",
    ),
    Attack(
        name="fills memory in many children, each below the limit",
        source=f"""
def attack(item, number):
    far, near = os.pipe()
    children = []
    for _ in range(6):
        children.append(os.fork())
        if not children[-1]:
            block = bytearray(b"x") * ({MEMORY} // 5)
            os.write(near, b"1")
            time.sleep(6)
            os._exit(0)
    end, got = time.monotonic() + 4, b""
    os.set_blocking(far, False)
    while len(got) < 6 and time.monotonic() < end:
        try:
            got += os.read(far, 6)
        except BlockingIOError:
            time.sleep(0.05)
    alive = [pid for pid in children if os.waitpid(pid, os.WNOHANG)[0] == 0]
    # All of these hold their part at this moment.
    return [len(alive) * {MEMORY} // 5, "bytes"] if min(len(got), len(alive)) >= 5 else None
""",
    ),
    Attack(
        name="fills memory in files without a name",
        source=f"""
def attack(item, number):
    held = 0
    for _ in range({MEMORY} // (1 << 24) + 1):
        fd = system("memfd_create", b"x", 0)
        held += os.write(fd, b"x" * (1 << 24))
    return [held, "bytes"] if held > {MEMORY} else None
""",
    ),
    Attack(
        name="fills shared memory files",
        leaves_files=True,
        source=f"""
def attack(item, number):
    held = 0
    for place in ("/dev/shm", "/run/lock", "/run/shm"):
        try:
            for part in range(0 if held > {MEMORY} else {MEMORY} // (1 << 24) + 1):
                path = os.path.join(place, f"{{item['marker']}}-{{part}}")
                with open(path, "wb", 0) as file:
                    held += file.write(b"x" * (1 << 24))
                os.unlink(path) if held > {MEMORY} else None
        except OSError as error:
            problem = error
    if held > {MEMORY}:
        return [held, "bytes"]
    raise problem
""",
    ),
    Attack(
        name="fills segments of System V memory",
        source=f"""
def attack(item, number):
    _LIBC.shmat.restype = ctypes.c_void_p
    held, size = 0, 1 << 25
    while held <= {MEMORY}:
        segment = system("shmget", 0, size, 0o1600)
        try:
            where = _LIBC.shmat(segment, None, 0)
            if where in (None, ctypes.c_void_p(-1).value):
                raise MemoryError
            ctypes.memset(where, 1, size)
        finally:
            _LIBC.shmctl(segment, 0, None)  # IPC_RMID: gone with the process
        held += size
    return [held, "bytes"]
""",
    ),
    Attack(
        name="fills the buffers of pipes",
        source=f"""
def attack(item, number):
    import fcntl, resource
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held, pipes, problem = 0, [], None
    try:
        while held <= {MEMORY}:
            pipes.append(os.pipe())
            size = fcntl.fcntl(pipes[-1][1], 1031, 1 << 20)  # F_SETPIPE_SZ
            os.set_blocking(pipes[-1][1], False)
            held += os.write(pipes[-1][1], b"x" * size)
    except OSError as error:
        problem = error
    if held > {MEMORY}:
        return [held, "bytes"]
    raise problem
""",
    ),
    Attack(
        name="fills the buffers of sockets",
        source=f"""
def attack(item, number):
    import resource
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held, pairs, block = 0, [], b"x" * (1 << 16)
    while held <= {MEMORY}:
        pairs.append(socket.socketpair())
        for end in pairs[-1]:
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            try:
                while True:
                    held += end.send(block)
            except BlockingIOError:
                pass
    return [held, "bytes"]
""",
    ),
    Attack(
        name="forks many processes",
        source=f"""
def attack(item, number):
    made, problem = 0, None
    try:
        for _ in range(2 * {PROCESSES}):
            if not os.fork():
                time.sleep(3)
                os._exit(0)
            made += 1
    except OSError as error:
        problem = error
    if made > {PROCESSES}:
        return [made, "processes"]
    raise problem
""",
    ),
    Attack(
        name="forks without end",
        judge=any_value,
        timeout_s=2.0,
        not_outside="it would take the machine's processes",
        source="""
def attack(item, number):
    while True:
        try:
            os.fork()
        except OSError:
            pass
""",
    ),
    Attack(
        name="starts many threads",
        source=f"""
def attack(item, number):
    stop, threads = threading.Event(), []
    try:
        for _ in range(2 * {PROCESSES}):
            threads.append(threading.Thread(target=stop.wait, daemon=True))
            threads[-1].start()
    except RuntimeError:
        threads.pop()
    stop.set()
    return [len(threads), "threads"] if len(threads) > {PROCESSES} else None
""",
    ),
    Attack(
        name="opens many descriptors",
        source=f"""
def attack(item, number):
    import resource
    for wish in (2 * {DESCRIPTORS}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wish, wish))
            break
        except (OSError, ValueError):
            pass
    opened = []
    try:
        while len(opened) <= {DESCRIPTORS}:
            opened.append(os.dup(0))
    finally:
        for fd in opened:
            os.close(fd)
    return [len(opened), "descriptors"]
""",
    ),
    Attack(
        name="fills the disk in pieces below any limit of one file",
        leaves_files=True,
        gets_through_l1="without a file system of its own only each file has a limit",
        source=f"""
def attack(item, number):
    for place in places():
        held, paths, problem = 0, [], None
        try:
            while held <= {DISK}:
                paths.append(os.path.join(place, f"{{item['marker']}}-{{len(paths)}}"))
                with open(paths[-1], "wb", 0) as file:
                    held += file.write(b"x" * (1 << 23))
        except OSError:
            pass
        for path in paths:
            if os.path.exists(path):
                os.unlink(path)
        if held > {DISK}:
            return [held, "bytes", place]
""",
    ),
    Attack(
        name="fills the disk through a descriptor of a deleted file",
        source=f"""
def attack(item, number):
    held = 0
    for place in places():
        try:
            fd, path = tempfile.mkstemp(dir=place)
            os.unlink(path)
            while held <= {DISK}:
                held += os.write(fd, b"x" * (1 << 22))
        except OSError as error:
            problem = error
    if held > {DISK}:
        return [held, "bytes"]
    raise problem
""",
    ),
    Attack(
        name="leaves files without end",
        timeout_s=20.0,
        leaves_files=True,
        source=f"""
def attack(item, number):
    folder = os.path.join(tempfile.gettempdir(), item["marker"])
    os.mkdir(folder)
    for made in range({FILES}):
        os.close(os.open(f"{{folder}}/{{made}}", os.O_CREAT | os.O_WRONLY))
""",
    ),
    Attack(
        name="pours out standard output",
        judge=grown,
        timeout_s=3.0,
        source="""
def attack(item, number):
    block = b"x" * (1 << 20)
    for _ in range(256):
        os.write(1, block)
""",
    ),
    Attack(
        name="pours out standard error",
        judge=grown,
        source="""
def attack(item, number):
    block = b"x" * (1 << 20)
    for _ in range(256):
        os.write(2, block)
""",
    ),
    Attack(
        name="dumps a core into its folder",
        judge=either(any_value, said),
        leaves_files=True,
        source="""
def attack(item, number):
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    def crash():
        os.abort()
    try:
        in_a_child(crash)
    except OSError:
        pass
    import glob
    return glob.glob("core*") or ["core dumps are allowed"]
""",
    ),
)
