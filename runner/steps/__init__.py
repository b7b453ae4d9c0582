"""What each step kind does, one kind a file. They compute; the engine records."""
