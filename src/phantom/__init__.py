"""Synthetic abdominal CT studies: anatomy, trauma, CT noise and the storage quirks of real DICOM archives."""
