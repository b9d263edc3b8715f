"""The commands of `jaxpgd`, a file each.

Commands that train (`run`, `train_denoiser`, `train_agent`, `evaluate`, `report`, `reproduce`) claim a run and go through its
stages (`stage_order`). The others have one form: open a read-only view of finished runs, load what is needed, measure, write
into a directory of their own.
"""
