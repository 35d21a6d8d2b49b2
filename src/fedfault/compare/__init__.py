"""Several runs beside one another: one table, paired statistics, one self-contained page. Works without torch."""
