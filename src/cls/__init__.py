"""The injury classifier: slice encoder, sequence head, five targets."""
