"""The papers' settings as data: one function per result, and for every setting where it stands or why it is assumed."""
