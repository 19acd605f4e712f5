"""What the stages that train networks share: encoders, weights, sequence heads, augmentation, the training loop."""
