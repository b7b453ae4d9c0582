"""Two states of a project: what changed between them, and whom that breaks."""
