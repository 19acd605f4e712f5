"""The competition's score: metric, priors, intervals, post-processing, submissions. Imports no torch."""
