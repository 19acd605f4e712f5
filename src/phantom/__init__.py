"""Synthetic abdominal CT studies: anatomy, trauma, CT noise and the storage quirks of real DICOM archives."""

from src.phantom.cohort import PatientPlan, SeriesPlan, plan_cohort
from src.phantom.generate import generate_dataset
from src.phantom.options import PhantomOptions
from src.phantom.scan import SeriesVolume, generate_series

__all__ = [
    "PatientPlan",
    "PhantomOptions",
    "SeriesPlan",
    "SeriesVolume",
    "generate_dataset",
    "generate_series",
    "plan_cohort",
]
