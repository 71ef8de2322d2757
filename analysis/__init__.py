"""What is observed: upper bounds on the robust radius, found by attacks, and the landscape between the bounds."""
