"""What people call, and the only place where the parts meet."""
