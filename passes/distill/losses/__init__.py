"""What a student's values are compared with a teacher's by, one loss a file."""
