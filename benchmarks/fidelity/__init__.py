"""How accurate: guidance and conditioning against distributions known in closed form."""
