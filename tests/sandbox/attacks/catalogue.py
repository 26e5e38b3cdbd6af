"""All attacks, by group."""

from collections.abc import Mapping

from attacks import (
    cross_sample,
    environment,
    file_read,
    file_write,
    interpreter,
    kernel,
    network,
    privilege,
    process,
    resources,
    result_channel,
    timing,
)
from attacks.attack import Attack

GROUPS: Mapping[str, tuple[Attack, ...]] = {
    "file read": file_read.ATTACKS,
    "file write": file_write.ATTACKS,
    "environment": environment.ATTACKS,
    "network": network.ATTACKS,
    "process": process.ATTACKS,
    "resources": resources.ATTACKS,
    "kernel": kernel.ATTACKS,
    "privilege": privilege.ATTACKS,
    "interpreter": interpreter.ATTACKS,
    "result channel": result_channel.ATTACKS,
    "cross-sample": cross_sample.ATTACKS,
    "timing": timing.ATTACKS,
}
ATTACKS: Mapping[str, Attack] = {
    f"{group}: {attack.name}": attack for group, attacks in GROUPS.items() for attack in attacks
}
