"""Which system calls are refused inside, compiled to a filter that needs no library there."""

import errno
import tempfile
from functools import cache

from agentrft.core.errors import ConfigError

DENIED = """
socket ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick
mount_setattr statmount listmount unshare setns quotactl quotactl_fd swapon swapoff
bpf io_uring_setup io_uring_enter io_uring_register perf_event_open userfaultfd
keyctl add_key request_key open_by_handle_at name_to_handle_at fanotify_init fanotify_mark
kexec_load kexec_file_load init_module finit_module delete_module create_module reboot acct syslog
sethostname setdomainname iopl ioperm modify_ldt vhangup lookup_dcookie nfsservctl _sysctl uselib
personality migrate_pages move_pages mbind set_mempolicy set_mempolicy_home_node get_robust_list
clock_settime clock_adjtime settimeofday adjtimex stime ioprio_set memfd_secret
shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semtimedop semctl
mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
mknod mknodat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
""".split()
"""Refused with EPERM: other processes, mounts, kernel surface, and everything that would outlive a
call (System V and POSIX queues and segments, keys). `socketpair` stays: event loops need it."""

ABSENT = ("clone3",)
"""ENOSYS: its flags lie behind a pointer that no filter can read, and libc then uses clone."""

NEW_NAMESPACES = (
    0x80,
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
"""Flags of clone: time, mount, cgroup, uts, ipc, user, pid, net."""

ONLY_ITSELF = {
    "prlimit64": 0,
    "sched_setaffinity": 0,
    "sched_setscheduler": 0,
    "sched_setparam": 0,
    "sched_setattr": 0,
    "setpriority": 1,
}
"""Calls that may name another process in this argument: only 0, the caller, passes."""

TERMINAL_REQUESTS = (0x5412, 0x541C)
"""ioctl TIOCSTI and TIOCLINUX: typing into somebody's terminal."""

SETUID_BITS = (0o4000, 0o2000)
MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
"""Argument that holds a file mode."""

UNKNOWN_FROM, UNKNOWN_TO = 453, 600
"""Numbers of calls that nobody has looked at yet: ENOSYS, which every libc expects."""


@cache
def compiled_filter() -> bytes:
    """Return the filter as BPF; raises ConfigError if libseccomp is not to be had."""
    try:
        import pyseccomp as seccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"libseccomp cannot be loaded ({error}); install it, e.g. `apt install libseccomp2`"
        ) from error

    refuse, absent = seccomp.ERRNO(errno.EPERM), seccomp.ERRNO(errno.ENOSYS)
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    arch = seccomp.system_arch()

    def add(action: int, name: str | int, *arguments: seccomp.Arg) -> None:
        # A name that this libseccomp or this architecture lacks cannot be called by name either.
        if isinstance(name, int) or _is_known(seccomp.resolve_syscall(arch, name)):
            rules.add_rule(action, name, *arguments)

    for name in DENIED:
        add(refuse, name)
    for name in ABSENT:
        add(absent, name)
    for number in range(UNKNOWN_FROM, UNKNOWN_TO):
        add(absent, number)
    for flag in NEW_NAMESPACES:
        add(refuse, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    for name, argument in ONLY_ITSELF.items():
        add(refuse, name, seccomp.Arg(argument, seccomp.NE, 0))
    for request in TERMINAL_REQUESTS:
        add(refuse, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request))
    for name, argument in MODES.items():
        for bit in SETUID_BITS:
            add(refuse, name, seccomp.Arg(argument, seccomp.MASKED_EQ, bit, bit))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _is_known(number: int) -> bool:
    return number >= 0
