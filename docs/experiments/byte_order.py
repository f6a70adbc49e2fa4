"""The port that a little-endian machine binds without htons."""

wanted = 8080
in_memory = wanted.to_bytes(2, "little")
bound = int.from_bytes(in_memory, "big")
print(f"wanted {wanted}, bound {bound}")
