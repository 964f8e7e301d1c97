"""Django REST Framework with simplejwt, generic views, its own keyset pages and Django's connection pool."""
