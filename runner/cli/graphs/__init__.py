"""Pictures of a project: what it consists of, and how that is drawn. One format a file."""
