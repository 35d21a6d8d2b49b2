"""What a run leaves behind: its folder, written and read in one place. Reading needs no torch."""
