"""Tables, plots and HTML pages of runs."""
