"""Plan × Delivery → Outcome: runs handlers so that nothing is lost."""
