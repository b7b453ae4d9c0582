"""One check a file. A rule is a function from the declarations to diagnostics."""

from runner.lang.rules import commands, expressions, ingress, inputs, limits, names, references, saga, schedules, types

RULES = (
    names.check,
    references.check,
    commands.check,
    expressions.check,
    inputs.check,
    limits.check,
    saga.check,
    schedules.check,
    ingress.check,
    types.check,
)
