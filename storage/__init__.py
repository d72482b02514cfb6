"""What is kept: the event format, the journal, snapshots, and the stores that are projected from it."""
