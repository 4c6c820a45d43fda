"""What a person looks at: pictures, tables, `results.json`."""
