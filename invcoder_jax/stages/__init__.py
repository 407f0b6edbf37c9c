"""The stages of the loop: each reads rows, writes rows and returns counts."""
