"""Inference: test images and fold models to submission.csv."""
