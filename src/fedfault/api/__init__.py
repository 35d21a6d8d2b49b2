"""What `import fedfault` offers: runs, studies and comparisons as objects, by the functions that the command line calls."""
