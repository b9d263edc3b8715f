"""Policy-guided trajectory generation for offline reinforcement learning, in JAX."""
