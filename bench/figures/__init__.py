"""The figures, one module each; `bench.catalogue` lists them."""
