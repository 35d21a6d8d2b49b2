"""The life of one run: started, watched, rolled back, resumed, forked."""
