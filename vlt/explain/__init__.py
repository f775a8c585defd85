"""Which of what it saw, heard and read made it say that, and how true is that."""
