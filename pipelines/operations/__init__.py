"""What may be done to the pixels of a finished window, as numbers in the plan, and three ways to do it."""
