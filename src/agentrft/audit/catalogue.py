"""Every probe there is, by number."""

from agentrft.audit import (
    acting,
    answer_free,
    code,
    composition,
    from_reference,
    plumbing,
    with_model,
)

PROBES = tuple(
    sorted(
        (
            *answer_free.PROBES,
            *from_reference.PROBES,
            *plumbing.PROBES,
            *code.PROBES,
            *acting.PROBES,
            *composition.PROBES,
        ),
        key=lambda probe: probe.number,
    )
)
"""Probes that need no model, 1 to 45."""
LLM_PROBES = with_model.PROBES
"""Probes that ask a model; their verdicts are warnings at most."""
