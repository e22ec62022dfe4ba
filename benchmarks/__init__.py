"""What proves the speed and memory claims."""
