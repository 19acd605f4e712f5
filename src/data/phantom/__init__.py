"""Synthetic abdominal CT studies: anatomy, trauma, CT noise and the storage quirks of real DICOM archives."""

from src.data.phantom.cohort import PatientPlan, SeriesPlan, plan_cohort
from src.data.phantom.generate import generate_dataset
from src.data.phantom.options import PhantomOptions
from src.data.phantom.series import SeriesVolume, generate_series

__all__ = [
    "PatientPlan",
    "PhantomOptions",
    "SeriesPlan",
    "SeriesVolume",
    "generate_dataset",
    "generate_series",
    "plan_cohort",
]
