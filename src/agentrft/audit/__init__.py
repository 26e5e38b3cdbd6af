"""Attack a grader before it may train anything."""
