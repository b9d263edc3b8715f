"""Diffusion: EDM's preconditioning and loss (`edm`), the sampling loop (`sampling`), solvers by name (`solvers`)."""
