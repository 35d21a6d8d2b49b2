"""The figures of a run, by what they are about. Each gives a Figure in a theme, or None when there is nothing to show."""
