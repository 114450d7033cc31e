"""What people were asked, what they answered, and what that is worth to a stage."""
