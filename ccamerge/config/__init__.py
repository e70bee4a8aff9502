"""What users may set: names, defaults and checks of settings, and the YAML that holds them."""
