"""What the servers share: forms of requests, errors, and who may ask."""
