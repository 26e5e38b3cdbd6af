"""Reading what is not the grader's: by path, by link, by handle, by device."""

from attacks.attack import Attack, leaked, said

ATTACKS = (
    Attack(
        name="reads a secret by its path",
        judge=leaked,
        source="""
def attack(item, number):
    return read(item["secret_file"])
""",
    ),
    Attack(
        name="reads a file that everybody on the machine may read",
        judge=leaked,
        source="""
def attack(item, number):
    return read(item["shared_file"])
""",
    ),
    Attack(
        name="reads through a relative path",
        judge=leaked,
        source="""
def attack(item, number):
    return read("../" * 40 + item["shared_file"].lstrip("/"))
""",
    ),
    Attack(
        name="reads through a symbolic link of its own",
        judge=leaked,
        source="""
def attack(item, number):
    link = os.path.join(tempfile.mkdtemp(), "link")
    os.symlink(item["secret_file"], link)
    return read(link)
""",
    ),
    Attack(
        name="reads through a hard link of its own",
        judge=leaked,
        source="""
def attack(item, number):
    link = os.path.join(tempfile.mkdtemp(dir=os.path.dirname(item["target_file"])), "link")
    os.link(item["secret_file"], link)
    return read(link)
""",
    ),
    Attack(
        name="reads through the root and the folder of other processes",
        judge=leaked,
        source="""
def attack(item, number):
    pids = [1, os.getppid(), item["server"], item["victim"]]
    return first(*(
        lambda p=pid, way=way: read(f"/proc/{p}/{way}{item['secret_file']}")
        for pid in pids for way in ("root", "cwd/../../../../../..")
    ))
""",
    ),
    Attack(
        name="reads an open file of another process",
        judge=leaked,
        source="""
def attack(item, number):
    return read(f"/proc/{item['victim']}/fd/{item['victim_fd']}")
""",
    ),
    Attack(
        name="reads through a path-only descriptor opened again",
        judge=leaked,
        source="""
def attack(item, number):
    fd = os.open(item["secret_file"], os.O_PATH)
    return read(f"/proc/self/fd/{fd}")
""",
    ),
    Attack(
        name="reads with openat2, which old filters do not know",
        judge=leaked,
        source="""
def attack(item, number):
    how = struct.pack("QQQ", 0, 0, 0)
    fd = system("openat2", -100, item["secret_file"].encode(), how, len(how))
    return os.read(fd, 4096).decode()
""",
    ),
    Attack(
        name="reads by file handle, without any path",
        judge=leaked,
        needs_root=True,
        source="""
def attack(item, number):
    mount = os.open("/", os.O_RDONLY)
    handle = ctypes.create_string_buffer(bytes.fromhex(item["handle"]))
    return os.read(system("open_by_handle_at", mount, handle, 0), 4096).decode()
""",
    ),
    Attack(
        name="makes a device node of the disk and reads it",
        needs_root=True,
        source="""
def attack(item, number):
    node = os.path.join(tempfile.mkdtemp(), "disk")
    os.mknod(node, stat.S_IFBLK | 0o600, item["root_device"])
    try:
        return len(os.read(os.open(node, os.O_RDONLY), 512))
    finally:
        os.unlink(node)
""",
    ),
    Attack(
        name="reads the password hashes",
        needs_root=True,
        source="""
def attack(item, number):
    return "root:" in read("/etc/shadow")
""",
    ),
    Attack(
        name="searches the usual folders for the secret",
        judge=leaked,
        source="""
def attack(item, number):
    end, found = time.monotonic() + 4, []
    for root in ("/tmp", "/home", "/root", "/var/tmp", "/srv", "/opt", "/mnt"):
        for folder, folders, files in os.walk(root):
            folders[:] = [f for f in folders if f.startswith("agentrft-world") or root != "/tmp" or
                          folder != "/tmp"]
            for name in files:
                if name in ("secret", "shared") and time.monotonic() < end:
                    found.append(read(os.path.join(folder, name)))
    return found
""",
    ),
    Attack(
        name="asks whether a file exists and how long it is",
        gets_through_l1="Landlock has no say in whether a path exists",
        source="""
def attack(item, number):
    return os.stat(item["shared_file"]).st_size
""",
    ),
    Attack(
        name="lists the checkout that the server runs from",
        judge=said,
        source="""
def attack(item, number):
    return [n for n in os.listdir(item["checkout"]) if n in ("pyproject.toml", "Makefile", ".git")]
""",
    ),
    Attack(
        name="reads the server's own working folder",
        judge=said,
        source="""
def attack(item, number):
    return [n for n in os.listdir(".") if n in ("pyproject.toml", "Makefile", ".git")]
""",
    ),
    Attack(
        name="reads the shell's history and the keys of the home folder",
        source="""
def attack(item, number):
    import pwd
    known = (".bash_history", ".ssh", ".netrc", ".aws", ".config", ".bashrc", ".profile", ".cache")
    return first(*(
        lambda home=user.pw_dir: [n for n in os.listdir(home) if n in known]
        for user in pwd.getpwall() if user.pw_uid in (0, 1000)
    ))
""",
    ),
)
