"""What a run found, for people: figures now, pictures beside them."""
