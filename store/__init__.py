"""What is kept: tables, catalog, lineage, mixture plans and their loader; asks no torch."""
