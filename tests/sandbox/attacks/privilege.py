"""Becoming more than it is: users, capabilities, limits, priorities."""

from attacks.attack import Attack, changed, said

ATTACKS = (
    Attack(
        name="becomes root",
        needs_root=True,
        source="""
def attack(item, number):
    os.setresuid(0, 0, 0)
    return first(lambda: capable(), lambda: "root:" in read("/etc/shadow"))


def capable():
    caps = (ctypes.c_uint32 * 6)()
    system("capget", struct.pack("Ii", 0x20080522, 0), caps)
    return [caps[0], caps[3]] if caps[0] or caps[3] else None
""",
    ),
    Attack(
        name="has capabilities",
        needs_root=True,
        gets_through_l1="started as root with an interpreter in a closed folder, it may pass such "
        "folders; Landlock still names every file",
        source="""
def attack(item, number):
    caps = (ctypes.c_uint32 * 6)()
    system("capget", struct.pack("Ii", 0x20080522, 0), caps)
    effective_and_permitted = (caps[0], caps[1], caps[3], caps[4])
    return [hex(each) for each in caps] if any(effective_and_permitted) else None
""",
    ),
    Attack(
        name="keeps the groups of root",
        needs_root=True,
        source="""
def attack(item, number):
    return [os.getgroups(), os.getegid()] if 0 in (*os.getgroups(), os.getegid()) else None
""",
    ),
    Attack(
        name="changes its groups",
        needs_root=True,
        source="""
def attack(item, number):
    os.setgroups([0, 1, 2])
    return os.getgroups()
""",
    ),
    Attack(
        name="may gain rights by running a program that grants them",
        source="""
def attack(item, number):
    return ["allowed"] if _LIBC.prctl(39, 0, 0, 0, 0) == 0 else None  # PR_GET_NO_NEW_PRIVS
""",
    ),
    Attack(
        name="gives a file capabilities",
        needs_root=True,
        source="""
def attack(item, number):
    fd, path = tempfile.mkstemp()
    rights = struct.pack("<IIIII", 0x02000001, 0x3FFF, 0, 0, 0)
    try:
        os.setxattr(path, "security.capability", rights)
    finally:
        os.unlink(path)
    return path
""",
    ),
    Attack(
        name="raises its own limits",
        needs_root=True,
        source="""
def attack(item, number):
    import resource
    def higher(which):
        hard = resource.getrlimit(which)[1]
        if hard == resource.RLIM_INFINITY:
            # Nothing holds here but what stands outside of the process.
            return None
        try:
            resource.setrlimit(which, (hard + 1, hard + 1))
        except ValueError as error:
            raise PermissionError(errno.EPERM, str(error))
        return [which, hard + 1]
    return first(*(lambda which=getattr(resource, name): higher(which) for name in dir(resource)
                   if name.startswith("RLIMIT_")))
""",
    ),
    Attack(
        name="lowers the limits of another process",
        source="""
def attack(item, number):
    import resource
    system("prlimit64", item["victim"], resource.RLIMIT_NOFILE, struct.pack("QQ", 64, 64), 0)
    return "lowered"
""",
    ),
    Attack(
        name="takes the processor from everybody else",
        needs_root=True,
        source="""
def attack(item, number):
    return in_a_child(lambda: first(
        lambda: [os.setpriority(os.PRIO_PROCESS, 0, -20), "niceness"],
        lambda: [os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)), "real time"],
    ))
""",
    ),
    Attack(
        name="takes the priority of another process away",
        source="""
def attack(item, number):
    os.setpriority(os.PRIO_PROCESS, item["victim"], 19)
    return os.getpriority(os.PRIO_PROCESS, item["victim"])
""",
    ),
    Attack(
        name="asks to be spared when memory is short",
        needs_root=True,
        source="""
def attack(item, number):
    def spare():
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-900")
        return read("/proc/self/oom_score_adj")
    return in_a_child(spare)
""",
    ),
    Attack(
        name="renames the machine",
        needs_root=True,
        source="""
def attack(item, number):
    def rename():
        try:
            system("unshare", 0x04000000)  # where this works, nobody else sees the name
        except OSError:
            pass
        return ["renamed", system("sethostname", b"mine", 4)]
    return in_a_child(rename)
""",
    ),
    Attack(
        name="makes a file that runs as root",
        judge=changed,
        needs_root=True,
        source="""
def attack(item, number):
    path = os.path.join(item["writable_folder"], "shell")
    open(path, "w").write("x")
    os.chmod(path, 0o6755)
""",
    ),
    Attack(
        name="fixes capabilities so that programs keep them",
        judge=said,
        needs_root=True,
        source="""
def attack(item, number):
    if _LIBC.prctl(28, 0x2F, 0, 0, 0):  # PR_SET_SECUREBITS
        raise OSError(ctypes.get_errno(), "refused")
    return "fixed"
""",
    ),
)
