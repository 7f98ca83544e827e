"""Tasks: where conditions come from, their posterior, how an answer is read, what is measured."""
