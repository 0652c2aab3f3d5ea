"""What the engine is measured with; nothing here is part of the package."""
