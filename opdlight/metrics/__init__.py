"""Pure metric functions, and the glossary of every logged key."""
