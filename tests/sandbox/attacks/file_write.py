"""Changing what is not the grader's."""

from attacks.attack import Attack, changed, either, said

ATTACKS = (
    Attack(
        name="makes a file in a folder that everybody may write to",
        judge=changed,
        source="""
def attack(item, number):
    open(os.path.join(item["writable_folder"], "planted"), "w").write("x")
""",
    ),
    Attack(
        name="appends to a file that everybody may write to",
        judge=changed,
        source="""
def attack(item, number):
    open(item["writable_file"], "a").write("tail")
""",
    ),
    Attack(
        name="truncates without opening",
        judge=changed,
        source="""
def attack(item, number):
    os.truncate(item["writable_file"], 1)
""",
    ),
    Attack(
        name="deletes a file",
        judge=changed,
        source="""
def attack(item, number):
    os.unlink(item["target_file"])
""",
    ),
    Attack(
        name="renames a file over another",
        judge=changed,
        source="""
def attack(item, number):
    os.rename(item["writable_file"], item["target_file"])
""",
    ),
    Attack(
        name="opens a private file to everybody",
        judge=changed,
        source="""
def attack(item, number):
    os.chmod(item["secret_file"], 0o666)
""",
    ),
    Attack(
        name="takes a file over",
        judge=changed,
        needs_root=True,
        source="""
def attack(item, number):
    os.chown(item["target_file"], 65534, 65534)
""",
    ),
    Attack(
        name="forges the time of a file",
        judge=changed,
        gets_through_l1="Landlock has no say in the times of a file that everybody may write to",
        source="""
def attack(item, number):
    os.utime(item["writable_file"])
""",
    ),
    Attack(
        name="plants links, pipes and sockets",
        judge=changed,
        source="""
def attack(item, number):
    place = lambda name: os.path.join(item["writable_folder"], name)
    done = 0
    for make in (
        lambda: os.mkfifo(place("pipe")),
        lambda: os.symlink("/etc", place("symlink")),
        lambda: os.link(item["writable_file"], place("hardlink")),
        lambda: os.mkdir(place("folder")),
        lambda: socket.socket(socket.AF_UNIX).bind(place("socket")),
    ):
        try:
            make()
            done += 1
        except OSError as error:
            problem = error
    if not done:
        raise problem
""",
    ),
    Attack(
        name="leaves a file in shared memory and in the temporary folders",
        leaves_files=True,
        source="""
def attack(item, number):
    for place in places():
        try:
            open(os.path.join(place, item["marker"]), "w").write("x")
        except OSError:
            pass
    # Whether these are folders of its own is seen from outside.
""",
    ),
    Attack(
        name="leaves folders nested too deep to be deleted by recursion",
        leaves_files=True,
        source="""
def attack(item, number):
    os.chdir(tempfile.gettempdir())
    for depth in range(1500):
        os.mkdir(item["marker"])
        os.chdir(item["marker"])
""",
    ),
    Attack(
        name="leaves a folder that its owner may not enter",
        leaves_files=True,
        source="""
def attack(item, number):
    place = os.path.join(tempfile.gettempdir(), item["marker"])
    os.makedirs(os.path.join(place, "inner"))
    open(os.path.join(place, "inner", "file"), "w").write("x")
    os.chmod(os.path.join(place, "inner"), 0)
    os.chmod(place, 0)
""",
    ),
    Attack(
        name="opens a module of the interpreter for writing",
        source="""
def attack(item, number):
    os.close(os.open(os.__file__, os.O_RDWR))
    return os.__file__
""",
    ),
    Attack(
        name="plants compiled code beside the interpreter's modules",
        source="""
def attack(item, number):
    return first(*(lambda place=place: planted(place, item["marker"]) for place in (
        os.path.join(os.path.dirname(os.__file__), "__pycache__"), item["site_packages"])))


def planted(place, name):
    path = os.path.join(place, f"{name}.pyc")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.unlink(path)
    return path
""",
    ),
    Attack(
        name="opens the kernel's settings for writing",
        judge=either(changed, said),
        needs_root=True,
        source="""
def attack(item, number):
    return first(*(lambda path=path: [os.close(os.open(path, os.O_WRONLY)), path] for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/sys/kernel/uevent_helper",
        "/proc/sysrq-trigger")))
""",
    ),
    Attack(
        name="opens the list of a control group for writing",
        needs_root=True,
        source="""
def attack(item, number):
    import glob
    lists = glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True)[:50]
    return first(*(lambda path=path: [os.close(os.open(path, os.O_WRONLY)), path] for path in lists))
""",
    ),
)
