"""What architectures can express: state tracking, recall, and both at once (arXiv 2604.03444, Section 3.5)."""
