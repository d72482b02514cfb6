"""Running it: settings, the `razao` command, the embedded engine, the gateway, and offline jobs."""
