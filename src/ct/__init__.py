"""CT from files to slices in Hounsfield units, head to feet."""
