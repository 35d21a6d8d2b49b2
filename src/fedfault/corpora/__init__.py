"""Data sets, one file each: `fedfault list corpus`."""
