"""The ledger's rules, the shards that own accounts, and the projector that follows their journal."""
