"""Programs for people who work on ztna or measure it; not part of the installed package."""
