"""VAEs as parts of other frameworks; each module needs its framework, which an extra of its name brings."""
