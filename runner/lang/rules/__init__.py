"""One check a file. A rule is a function from the declarations to diagnostics."""

from runner.lang.rules import expressions, inputs, limits, names, references, saga

RULES = (names.check, references.check, expressions.check, inputs.check, limits.check, saga.check)
