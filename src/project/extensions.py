"""The Flask extensions, unbound; `create_app` attaches them."""

from flask_cors import CORS
from flask_jwt_extended import JWTManager
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_migrate import Migrate

cors = CORS()
jwt = JWTManager()
migrate = Migrate()
# In the keys too: what one strategy has counted another could not read.
STRATEGY = "fixed-window"
# Limits are declared and counted in limits.py, with the storage and the strategy of this one. What the extension does
# by itself for each request costs more than the count, so it is told that no request is its concern.
limiter = Limiter(key_func=get_remote_address, strategy=STRATEGY)
limiter.request_filter(lambda: True)
