"""What survives a restart: database, files, datasets; core types to JSON and back."""
