"""The command line: parses, calls a public function of the registry, prints what it returns."""
