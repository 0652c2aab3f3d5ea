"""Long prompts beside OpenVINO GenAI: what is kept of them, and what is looked at."""
