"""Synthetic abdominal CT studies: anatomy, trauma, CT noise and storage variants of real DICOM archives."""
