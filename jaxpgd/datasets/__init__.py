"""Datasets: reading, checking, describing and exporting them."""

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets.load import load

__all__ = ["Dataset", "DatasetInfo", "load"]
