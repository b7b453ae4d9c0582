"""From YAML to a Plan: load, check the shape, check the rules, compile."""
