"""What the backends of tables and tensors share: from rows to what an estimator takes, and back."""
