"""Kinds of files and of objects that rows are read from, each in a module of its own."""
