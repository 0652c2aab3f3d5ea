"""A model that transforms rewrite before it is packed or written: see core/seams/transform.py."""
