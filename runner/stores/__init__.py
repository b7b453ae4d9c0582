"""Where runs, events, outgoing messages and dead letters are kept. One store a file."""
