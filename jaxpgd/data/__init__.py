"""Datasets: reading, checking, describing and exporting them, and the windows that train a denoiser."""

from jaxpgd.data.dataset import Dataset, DatasetInfo
from jaxpgd.data.load import load

__all__ = ["Dataset", "DatasetInfo", "load"]
