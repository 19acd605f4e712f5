"""The competition's score: the metric, priors, intervals, post-processing, submissions. Imports no torch."""
