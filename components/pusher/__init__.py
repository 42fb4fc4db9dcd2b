"""What makes a blessed model a version of its servable."""
