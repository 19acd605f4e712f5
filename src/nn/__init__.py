"""What the trainers share: encoders, weights, sequence heads, augmentation, the training loop."""
