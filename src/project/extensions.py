"""The Flask extensions, unbound; `create_app` attaches them."""

from flask_cors import CORS
from flask_jwt_extended import JWTManager
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_migrate import Migrate

cors = CORS()
jwt = JWTManager()
migrate = Migrate()
# Limits are declared in limits.py; when Redis is away each process counts on its own with the same numbers.
limiter = Limiter(key_func=get_remote_address, strategy="fixed-window", in_memory_fallback_enabled=True)
