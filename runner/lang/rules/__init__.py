"""One check a file. A rule is a function from the declarations to diagnostics."""

from runner.lang.rules import (
    commands,
    coverage,
    expressions,
    flow_of_events,
    ingress,
    inputs,
    keys,
    limits,
    names,
    projections,
    references,
    saga,
    schedules,
    secrets,
    times,
    traffic,
    types,
)

RULES = (
    names.check,
    references.check,
    commands.check,
    expressions.check,
    inputs.check,
    limits.check,
    saga.check,
    schedules.check,
    secrets.check,
    ingress.check,
    projections.check,
    times.check,
    traffic.check,
    types.check,
)
WHOLE = (flow_of_events.check, coverage.check, keys.check)
"""Of the project as a whole, once nothing is wrong with its parts: a misspelt name is one mistake, not three."""
