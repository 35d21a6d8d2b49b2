"""The figures of a run, by subject. Each function draws a Figure in a theme, or returns None without anything to show."""
