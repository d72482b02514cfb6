"""Ray Serve applications: HTTP in, batches of events out."""
