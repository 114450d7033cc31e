"""`tristage serve`: a run's policies and its reward model behind OpenAI's HTTP interface."""
