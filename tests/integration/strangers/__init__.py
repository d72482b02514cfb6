"""Readers of the journal that share no code with the engine, and what compiles and starts them."""
