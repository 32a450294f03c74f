"""What a model learned: numbers first (arrays, tidy tables), pictures second; each analysis cites its source."""
