"""Test images and fold models to submission.csv."""
