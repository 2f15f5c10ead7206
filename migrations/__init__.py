"""Alembic's revisions of the catalog. Users run them with ``taps-registry init`` and ``taps-registry upgrade``."""
