"""What drafters that have a model share: streams with a state of their own, and growing trees."""
