"""Files and folders on disk: written atomically, hashed and sealed."""
