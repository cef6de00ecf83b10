"""The constitution workbench: what a constitution does, seen before anything is trained."""
