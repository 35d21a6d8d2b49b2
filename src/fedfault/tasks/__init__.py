"""The tasks: next tokens, labels or scores, learned by many clients on one frozen backbone."""
