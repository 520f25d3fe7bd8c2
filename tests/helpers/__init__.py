"""What several test files share, in modules that are named after what they make."""
