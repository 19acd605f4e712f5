"""The competition's score and everything judged by it: priors, intervals, rankings, submissions. No torch."""
