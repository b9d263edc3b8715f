"""What runs survive: kills, damaged files, full disks, hours."""
