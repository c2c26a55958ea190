"""Command line: the only modules where learner, simulators and deployment meet."""
