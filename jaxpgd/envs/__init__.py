"""Pure-JAX environments with known answers."""
