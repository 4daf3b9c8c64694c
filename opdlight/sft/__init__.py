"""A student's cold start: experts of the environments demonstrate the tasks, and the student is fine-tuned on that."""
