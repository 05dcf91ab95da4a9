"""The asv suite. asv takes a higher number for a worse one: read samples per second the other way round."""
