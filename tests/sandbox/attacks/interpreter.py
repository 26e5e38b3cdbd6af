"""The interpreter against itself: crashes, exits, patched modules, walks to the caller's objects."""

from attacks.attack import HONEST, Attack, any_value, not_honest, said

ATTACKS = (
    Attack(
        name="crashes the interpreter by a null pointer",
        judge=any_value,
        source="""
def attack(item, number):
    ctypes.string_at(0)
    return 1.0
""",
    ),
    Attack(
        name="crashes the interpreter by endless recursion",
        judge=any_value,
        source="""
def attack(item, number):
    sys.setrecursionlimit(1 << 30)
    def down(n):
        return down([n].__iter__().__next__() + 1) if n >= 0 else 0
    class Deep:
        def __getattr__(self, name):
            return getattr(self, name + "x")
    return repr(Deep().x)
""",
    ),
    Attack(
        name="aborts",
        judge=any_value,
        source="""
def attack(item, number):
    os.abort()
""",
    ),
    Attack(
        name="exits with status 0, which a runner of tests may take for success",
        judge=any_value,
        source="""
def attack(item, number):
    os._exit(0)
""",
    ),
    Attack(
        name="raises SystemExit(0)",
        judge=any_value,
        source="""
def attack(item, number):
    sys.exit(0)
""",
    ),
    Attack(
        name="exits with status 0 while it is imported",
        judge=any_value,
        spoils_import=True,
        source="""
os._exit(0)
""",
    ),
    Attack(
        name="raises SystemExit(0) while it is imported",
        judge=any_value,
        spoils_import=True,
        source="""
sys.exit(0)
""",
    ),
    Attack(
        name="exits at exit",
        judge=not_honest,
        source="""
def attack(item, number):
    import atexit
    atexit.register(os._exit, 0)
    atexit.register(os.write, 1, b'{"score": 1.0}\\n1.0\\n')
    sys.exit(0)
""",
    ),
    Attack(
        name="closes every descriptor and exits with status 0",
        judge=any_value,
        source="""
def attack(item, number):
    os.closerange(0, 4096)
    os._exit(0)
""",
    ),
    Attack(
        name="puts every descriptor in the place of every other",
        judge=not_honest,
        source=f"""
def attack(item, number):
    far, near = os.pipe()
    for fd in range(64):
        if fd not in (far, near):
            os.dup2(near, fd)
    return {HONEST}
""",
    ),
    Attack(
        name="patches the modules that a caller would encode with",
        judge=not_honest,
        calls=2,
        source=f"""
def attack(item, number):
    if number == 0:
        import builtins, pickle
        for module in (json, pickle):
            module.dumps = lambda *given, **options: "1.0"
            module.dump = lambda value, file, *given, **options: file.write("1.0")
        json.JSONEncoder.encode = lambda self, value: "1.0"
        struct.pack = lambda *given: b"1.0"
        builtins.float = lambda value: 1.0
    return {HONEST}
""",
    ),
    Attack(
        name="replaces every function of the caller's module",
        judge=not_honest,
        calls=2,
        source=f"""
def attack(item, number):
    if number == 0:
        for module in (sys.modules["__main__"], *sys.modules.values()):
            for name, value in list(vars(module).items()):
                if "grade" in name or (module.__name__ or "").startswith(("__main__", "agentrft")):
                    if callable(value) and not isinstance(value, type):
                        try:
                            setattr(module, name, lambda *given, **options: 1.0)
                        except (AttributeError, TypeError):
                            pass
        frame = sys._getframe()
        while frame := frame.f_back:
            for name, value in list(frame.f_globals.items()):
                if callable(value) and name in ("grade", "call", "run", "encode"):
                    frame.f_globals[name] = lambda *given, **options: 1.0
    return {HONEST}
""",
    ),
    Attack(
        name="walks the callers' frames for the other side of its channel",
        judge=not_honest,
        source=f"""
def attack(item, number):
    frame, found = sys._getframe(), []
    while frame := frame.f_back:
        found += frame.f_locals.values()
    found += [each for value in found for each in getattr(value, "__dict__", dict()).values()]
    import base64, pickle
    line = base64.b64encode(pickle.dumps(("value", 1.0))).decode() + "\\n"
    forged = [b"1.0", b'{{"value": 1.0}}', b'{{"score": 1.0}}']
    for value in found:
        for send in ("write", "send", "sendall", "send_bytes", "reply", "put", "set_result"):
            for message in (*forged, 1.0, line):
                try:
                    getattr(value, send)(message)
                except Exception:
                    pass
        if isinstance(value, int) and 2 < value < 4096:
            for message in forged:
                try:
                    os.write(value, struct.pack(">I", len(message)) + message)
                    os.write(value, struct.pack("<I", len(message)) + message)
                except OSError:
                    pass
    return {HONEST}
""",
    ),
    Attack(
        name="walks the garbage collector for other callers' objects",
        judge=said,
        calls=2,
        source="""
def attack(item, number):
    import gc
    mine = f"sample {number}"
    other = f"sample {1 - number}"
    for holder in gc.get_objects():
        for each in (holder, *(gc.get_referents(holder) if type(holder) in (list, tuple) else ())):
            if type(each) is dict and each.get("output_text") == other:
                return other
""",
    ),
    Attack(
        name="plants modules where the next import looks",
        judge=said,
        calls=2,
        leaves_files=True,
        source="""
def attack(item, number):
    if number == 0:
        for place in [*places(), *(p for p in sys.path if os.path.isdir(p) and not p.startswith(
                (sys.prefix, sys.base_prefix, item["checkout"])))]:
            try:
                open(os.path.join(place, "colorsys.py"), "w").write("planted = True")
            except OSError:
                pass
        return None
    import colorsys
    for place in places():
        if os.path.exists(path := os.path.join(place, "colorsys.py")):
            os.unlink(path)
    return getattr(colorsys, "planted", None)
""",
    ),
    Attack(
        name="hides a hook in the import machinery for the next call",
        judge=said,
        calls=2,
        source="""
def attack(item, number):
    if number == 0:
        sys.modules["colorsys"] = type(sys)("colorsys")
        sys.modules["colorsys"].planted = True
        sys.path.insert(0, tempfile.mkdtemp())
        return None
    import colorsys
    return getattr(colorsys, "planted", None)
""",
    ),
    Attack(
        name="takes the signal handlers and timers of the caller away",
        judge=any_value,
        timeout_s=1.0,
        source="""
def attack(item, number):
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    for each in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU, signal.SIGTERM):
        signal.signal(each, lambda *given: None)
    while True:
        pass
""",
    ),
    Attack(
        name="never ends because of an object that resists its end",
        judge=not_honest,
        timeout_s=1.0,
        source=f"""
class Last:
    def __del__(self):
        while True:
            pass


def attack(item, number):
    sys.kept = Last()
    threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()
    return {HONEST}
""",
    ),
    Attack(
        name="stops with exceptions that only the interpreter should raise",
        judge=any_value,
        source="""
def attack(item, number):
    class Strange(BaseException):
        def __str__(self):
            os._exit(0)
        __repr__ = __str__
    raise Strange
""",
    ),
)
