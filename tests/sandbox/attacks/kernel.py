"""Doors of the kernel that are closed to graders. Evidence: the kernel looked at the arguments."""

from attacks.attack import Attack


def door(name: str, body: str, *, needs_root: bool = False, not_outside: str = "") -> Attack:
    """An attack whose snippet is one expression."""
    return Attack(
        name=name,
        source=f"def attack(item, number):\n    return in_a_child(lambda: {body.strip()})",
        needs_root=needs_root,
        not_outside=not_outside,
    )


ATTACKS = (
    door("makes a user namespace", '["entered", system("unshare", 0x10000000)]'),
    door(
        "makes every namespace at once", '["entered", system("unshare", 0x6E020000 | 0x10000000)]'
    ),
    Attack(
        name="clones into a user namespace",
        source="""
def attack(item, number):
    pid = system("clone", 0x10000000 | 17, 0, 0, 0, 0)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return ["cloned", pid]
""",
    ),
    Attack(
        name="clones into a user namespace with the newer call, whose flags no filter can read",
        source="""
def attack(item, number):
    arguments = struct.pack("8Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0)
    pid = system("clone3", arguments, len(arguments))
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return ["cloned", pid]
""",
    ),
    Attack(
        name="mounts a file system",
        needs_root=True,
        source="""
def attack(item, number):
    def mount():
        try:
            system("unshare", 0x00020000)  # where this works, the mount is seen by nobody else
            system("mount", b"none", b"/", 0, 0x44000, 0)
        except OSError:
            pass
        folder = tempfile.mkdtemp().encode()
        return ["mounted", system("mount", b"x", folder, b"tmpfs", 0, 0)]
    return in_a_child(mount)
""",
    ),
    Attack(
        name="mounts over a folder that it may not change",
        needs_root=True,
        source="""
def attack(item, number):
    def mount():
        try:
            system("unshare", 0x00020000)
            system("mount", b"none", b"/", 0, 0x44000, 0)
        except OSError:
            pass
        return ["mounted", system("mount", b"/tmp", b"/usr", 0, 4096, 0)]
    return in_a_child(mount)
""",
    ),
    door(
        "opens a file system with the newer calls",
        'reached("fsopen", b"tmpfs", 0)',
        needs_root=True,
    ),
    door("copies a mount", 'reached("open_tree", -100, b"/", 1)', needs_root=True),
    door("changes flags of a mount", 'reached("mount_setattr", -1, b"", 0, bytes(32), 32)'),
    door("unmounts", 'reached("umount2", b"/nowhere", 0)', needs_root=True),
    door("exchanges the root", 'reached("pivot_root", b"/nowhere", b"/nowhere")', needs_root=True),
    door("changes its root", '[os.chroot("/"), "changed"]', needs_root=True),
    door("loads a program into the kernel", 'reached("bpf", 0, bytes(128), 128)', needs_root=True),
    door(
        "watches the processor's counters", 'reached("perf_event_open", bytes(128), 0, -1, -1, 0)'
    ),
    door(
        "opens a ring of system calls",
        'reached("io_uring_setup", 4, ctypes.create_string_buffer(120))',
    ),
    door("opens the session's key ring", '[system("keyctl", 0, -3, 1), "opened"]'),
    door(
        "adds a key that outlives it",
        '[system("add_key", b"user", item["marker"].encode(), b"x", 1, -1), "added"]',
    ),
    door("handles page faults of its own", 'reached("userfaultfd", 0)'),
    door("loads a kernel module", 'reached("init_module", bytes(8), 8, b"")', needs_root=True),
    door(
        "loads a kernel module from a file", 'reached("finit_module", -1, b"", 0)', needs_root=True
    ),
    door("loads another kernel", 'reached("kexec_load", 0, 99, 0, 0)', needs_root=True),
    door("asks for a reboot", 'reached("reboot", 1, 2, 3, 0)', needs_root=True),
    door("switches on process accounting", 'reached("acct", b"/nowhere")', needs_root=True),
    door("swaps to a file of its own", 'reached("swapon", b"/nowhere", 0)', needs_root=True),
    door(
        "changes disk quotas",
        'reached("quotactl", 0x800002 << 8, b"/nowhere", 0, 0)',
        needs_root=True,
    ),
    door(
        "watches every file that anybody opens", 'reached("fanotify_init", 0, 0)', needs_root=True
    ),
    door("moves pages of another process", 'reached("move_pages", item["victim"], 0, 0, 0, 0, 0)'),
    door("touches input and output ports", 'reached("ioperm", 0x80, 1, 1)', needs_root=True),
    door("opens the kernel's cipher sockets", "str(socket.socket(38, socket.SOCK_SEQPACKET))"),
    door(
        "sets the machine's clock",
        '["set", time.clock_settime(time.CLOCK_REALTIME, time.time())]',
        not_outside="it would set the machine's clock",
    ),
    Attack(
        name="types into a terminal",
        source="""
def attack(item, number):
    import fcntl, pty
    near, far = pty.openpty()
    os.setsid() if os.getpid() != os.getsid(0) else None
    fcntl.ioctl(far, 0x540E, 0)  # TIOCSCTTY
    return ["typed", fcntl.ioctl(far, 0x5412, b"x")]  # TIOCSTI
""",
    ),
    Attack(
        name="goes around the filter with 32-bit system calls",
        source="""
def attack(item, number):
    def connect():
        import mmap
        if platform.machine() != "x86_64":
            raise OSError(errno.ENOSYS, "this machine has no 32-bit calls")
        # push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; xor edx, edx; int 0x80; pop rbx; ret
        code = bytes.fromhex("5389f889f389d131d2cd805bc3")
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(code)
        run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)(
            ctypes.addressof(ctypes.c_char.from_buffer(page)))
        fd = run(359, socket.AF_INET, socket.SOCK_STREAM)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd))
        return ["socket", fd]
    return in_a_child(connect)
""",
    ),
    door(
        "goes around the filter with x32 system calls",
        '["socket", system(0x40000000 + 41, 2, 1, 0)]',
    ),
)
