"""What is learned: next tokens, labels or scores, by many clients on one frozen backbone."""
